"""Searches by name, as runs are: status from plan and ledger, the logs of their trials."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import pytest
from rich.console import Console
from tokendial import api, runs
from tokendial.cli import app
from tokendial.experiments import ConfigError
from tokendial.identity import Identity
from tokendial.jobs import Standing
from tokendial.progress import progress_reporter, read_line
from tokendial.resolve import resolve
from tokendial.search.desk import Desk
from tokendial.search.drive import _Board, plan_search
from tokendial.search.space import Candidate
from tokendial.search.state import State
from tokendial.search.trials import Book, Outcome
from typer.testing import CliRunner, Result


def said(*words: str) -> Result:
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"})


def ended(worth: float | None) -> Outcome:
    if worth is None:
        return Outcome("FAILED", cause="ValueError: on fire")
    return Outcome("FINISHED", {"autc": worth}, {1: worth, 4: worth}, flops=2e9, group=str(worth), seed=0)


@pytest.fixture
def search(home: Path) -> Path:
    """Four trials planned: one finished, one failed, one at work."""
    made = plan_search(
        "digits.tiny", ("schedule=tokenflex,uniform,m3,fixed",), budget="2e9", per_trial=True, name="found"
    )
    folder = home / "found"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(made.model_dump_json())
    book = Book(folder / "trials.jsonl")
    for number, outcome in enumerate((ended(0.25), ended(None), None)):
        run = f"found.{number:03d}"
        book.asked(number, Candidate({"schedule": "m3"}, ("schedule=m3",)), run)
        if number != 1:
            runs.create(run, resolve("digits.tiny", machine_cpus=None), Identity(user="ada"), twin_of="found")
            (home / run / "logs").mkdir()
            (home / run / "logs" / "driver.log").write_text(f"driver of {number}\n")
            (home / run / "logs" / "rank-0.log").write_text(f"rank of {number}\n")
        if outcome is not None:
            book.done(number, outcome)
    State(status="RUNNING").write(folder)
    return folder


def standing(name: str = "found") -> Standing:
    return next(row for row in api.status(name) if row.run == name)


def test_status_of_a_search_has_trials_done_the_best_so_far_and_its_state(search: Path) -> None:
    row = standing()
    assert (row.place, row.status, row.stage, row.step, row.total) == ("here", "DIED", "trials", 2, 4)
    assert row.detail == "best autc 0.250 by found.000"
    assert 0 <= row.age_s < 600
    with runs.Run(search).lease():
        assert standing().status == "RUNNING"
    Book(search / "trials.jsonl").done(2, ended(0.5))
    State(status="KILLED", error="it was stopped").write(search)
    row = standing()
    assert (row.status, row.step, row.error) == ("KILLED", 3, "it was stopped")
    assert row.detail == "best autc 0.500 by found.002"
    shown = said("status", "found")
    assert shown.exit_code == 0
    assert "trials 3/4" in shown.stdout


def test_status_lists_searches_among_runs_and_leaves_out_broken_ones(search: Path) -> None:
    (search.parent / "broken").mkdir()
    (search.parent / "broken" / "plan.json").write_text("{")
    (search.parent / "torn").mkdir()
    (search.parent / "torn" / "plan.json").write_text((search / "plan.json").read_text())
    (search.parent / "torn" / "trials.jsonl").write_text('{"event": }\n')
    listed = json.loads(said("status", "--json").stdout)
    assert [row["run"] for row in listed] == ["found", "found.000", "found.002"]
    for name, file in (("broken", "plan.json"), ("torn", "trials.jsonl")):
        done = said("status", name)
        assert (done.exit_code, done.stderr) == (
            2,
            f"tokendial: {search.parent / name / file} is broken; repair it or move the folder away\n",
        )


def test_a_search_from_before_states_were_written_is_as_its_files_say(search: Path) -> None:
    (search / "state.json").unlink()
    assert standing().status == "DIED"
    (search / "result.json").touch()
    assert standing().status == "FINISHED"


def test_a_search_that_nobody_began_stands_at_nothing(search: Path) -> None:
    (search / "trials.jsonl").unlink()
    row = standing()
    assert (row.step, row.total, row.detail) == (0, 4, "")
    assert row.age_s < 600
    with pytest.raises(ConfigError, match=r"run 'found' has no logs: .*found holds none"):
        api.logs("found")


def test_logs_of_a_search_are_those_of_its_own_and_its_trials_drivers(search: Path) -> None:
    tower = search.parent / "found.tower-1a2b3c4d" / "logs"
    tower.mkdir(parents=True)
    (tower / "driver.log").write_text("driver of the tower\n")
    (search / "logs").mkdir()
    (search / "logs" / "driver.log").write_text("driver of all\n")
    assert api.logs("found") == {
        "found": "driver of all\n",
        "found.tower-1a2b3c4d": "driver of the tower\n",
        "found.000": "driver of 0\n",
        "found.001": "failed: ValueError: on fire\n",
        "found.002": "driver of 2\n",
    }
    shown = said("logs", "found")
    assert shown.exit_code == 0
    assert shown.stdout.startswith(
        "==> found <==\ndriver of all\n\n==> found.tower-1a2b3c4d <==\ndriver of the tower\n\n==> found.000 <==\n"
    )
    assert said("logs", "found.002", "--rank", "0").stdout == "rank of 2\n"
    ranks = said("logs", "found", "--rank", "0")
    assert ranks.exit_code == 2
    assert ranks.stderr == (
        "tokendial: run 'found' has no log 'rank-0'; it has found, found.tower-1a2b3c4d, found.000, found.001, "
        "found.002\n"
    )
    assert said("logs", "found", "--follow").stderr.startswith("tokendial: run 'found' has no job to follow")


def test_progress_of_many_trials_is_a_line_every_few_seconds_that_is_read_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = itertools.count(), io.StringIO()
    monkeypatch.setattr("tokendial.progress.time.monotonic", lambda: next(clock))
    seeds = ",".join(map(str, range(32)))
    made = plan_search("digits.tiny", ("schedule=uniform", f"seed={seeds}"), budget="2e9", per_trial=True)
    with progress_reporter(Console(file=written, width=200)) as progress:
        board = _Board(made, Desk(made, tmp_path), progress)
        for second in range(60):
            board.show(second % 32, {"step": 1000 + second, "total": 4000})
    lines = written.getvalue().splitlines()
    assert 1 < len(lines) <= 13
    last = read_line(lines[-1])
    assert last is not None
    assert (last["stage"], last["step"], last["total"]) == ("trials", 0, 32)
    assert last["detail"].startswith("000 1032/4000, 001 ")
    assert last["detail"].count(",") == 31

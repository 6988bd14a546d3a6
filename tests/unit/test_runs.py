"""The run store: names, configurations that may and may not change, leases, and finding runs again."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tokendial import api, runs
from tokendial.cli import app
from tokendial.contracts import RunConfig
from tokendial.experiments import ConfigError
from tokendial.identity import Identity, user_name
from tokendial.resolve import resolve
from tokendial.results import RunResult, write_result
from typer.testing import CliRunner

ME = Identity(user=user_name(), commit="abc", diff="a change")


def config(*overrides: str) -> RunConfig[Any]:
    return resolve("digits.tiny", overrides)


def test_a_name_is_user_experiment_and_hash() -> None:
    assert runs.run_name(config(), "ann").startswith("ann.digits.tiny.")
    assert runs.run_name(config(), "ann") == runs.run_name(config("seed=0"), "ann")


@pytest.mark.parametrize(
    "change", ["workers=2", "micro_batch=2", "zero.stage=3", "checkpoint.every=7", "max_failures=0", "description=x"]
)
def test_what_may_change_on_resume_is_no_part_of_the_name(change: str, home: Path) -> None:
    assert runs.run_name(config(change)) == runs.run_name(config())
    runs.create("it", config(), ME)
    runs.create("it", config(change), ME)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=1", "seed: 0 → 1"),
        ("schedule=m3", "mix 'smallest' → 'all'"),
        ("optimizer.lr=0.5", "optimizer: lr 0.004 → 0.5"),
        ("budget.steps=13", "budget: steps 12 → 13"),
        ("evaluation.counts=[4]", "evaluation: counts"),
        ("model.projector=pool_after", "model: projector 'pool' → 'pool_after'"),
    ],
)
def test_what_may_not_change_is_another_name_and_refused_with_the_difference(
    change: str, words: str, home: Path
) -> None:
    assert runs.run_name(config(change)) != runs.run_name(config())
    runs.create("it", config(), ME)
    with pytest.raises(ConfigError, match="use --new, another --name, or --from it") as raised:
        runs.create("it", config(change), ME)
    assert words in str(raised.value)
    assert runs.find("it").config_document() == config().model_dump(mode="json")


@pytest.mark.parametrize("name", ["", ".", "../up", "a/b", "-x", "a b", "x" * 101, "é"])
def test_names_that_are_no_names_are_refused(name: str, home: Path) -> None:
    with pytest.raises(ConfigError, match="is not admissible"):
        runs.create(name, config(), ME)
    assert not home.exists()


def test_a_run_is_found_by_name_id_and_as_the_last_of_its_user(home: Path) -> None:
    for number, name in enumerate(("first", "second")):
        runs.create(name, config(), ME).update(run_id=f"id-{number}", created=float(number))
    runs.create("foreign", config(), Identity(user="somebody-else")).update(created=9.0)
    assert runs.find("first").name == "first"
    assert runs.find("id-1").name == "second"
    assert runs.find("last").name == "second"
    assert [run.name for run in runs.list_runs()] == ["first", "second", "foreign"]
    with pytest.raises(ConfigError, match=r"'fist' is not under .* the newest there: first, second, foreign"):
        runs.find("fist")
    (home / "found").mkdir()
    (home / "found" / "plan.json").touch()
    with pytest.raises(ConfigError, match="'found' is a search; `tokendial report found` says which run of it is best"):
        runs.find("found")


def test_a_run_has_no_place_in_a_search(home: Path) -> None:
    (home / "it").mkdir(parents=True)
    (home / "it" / "plan.json").touch()
    with pytest.raises(ConfigError, match="'it' is a search; give the run another --name"):
        runs.create("it", config(), ME)
    assert not (home / "it" / "run.json").exists()


def test_a_run_is_found_by_its_folder_and_twins_are_never_the_last(home: Path) -> None:
    first = runs.create("first", config(), ME)
    runs.create("twin", config("seed=1"), ME, twin_of="first")
    assert runs.find("last").name == "first"
    assert runs.find(str(first.folder)).folder == first.folder
    assert runs.find("twin").record.twin_of == "first"


ASKED = {
    "report": lambda name: api.report([name]),
    "export": lambda name: api.export(name, Path(name) / "copy"),
    "eval": api.evaluate,
}


@pytest.mark.parametrize("command", ASKED)
def test_an_unfinished_run_is_told_of_by_its_status(command: str, home: Path) -> None:
    run = runs.create("it", config(), ME)
    with pytest.raises(ConfigError, match=r"^run 'it' has no result; its status is RUNNING$"):
        ASKED[command]("it")
    run.update(status="KILLED", error="it was stopped")
    with pytest.raises(ConfigError, match=r"^run 'it' has no result; its status is KILLED: it was stopped$"):
        ASKED[command]("last")


def test_a_run_is_continued_from_the_source_it_began_with(home: Path) -> None:
    runs.create("it", config(), ME, parent="a")
    runs.create("it", config(), ME, parent="a")
    for parent, words in ((None, "from fresh weights"), ("b", "from 'b'")):
        with pytest.raises(ConfigError, match=f"run 'it' started from 'a', not {words}; use --new"):
            runs.create("it", config(), ME, parent=parent)


def test_weights_from_runs_that_differ_only_in_their_seed_are_of_one_lineage(home: Path) -> None:
    for name, variant, data in (("a0", "v", "d"), ("a1", "v", "d"), ("b", "w", "d"), ("c", "v", "e")):
        run = runs.create(name, config(), ME)
        write_result(run.result, RunResult(run_id=None, name=name, status="FINISHED", variant=variant, data=data))
    found = {name: runs.lineage(name) for name in ("a0", "a1", "b", "c", "gone")}
    assert found["a0"] == found["a1"]
    assert len({"", *found.values()}) == 5
    assert found["gone"] == "gone"
    assert runs.lineage(None) == ""


def test_a_broken_record_hides_only_its_own_run(home: Path) -> None:
    runs.create("whole", config(), ME)
    (runs.create("broken", config(), ME).folder / "run.json").write_text("{")
    assert [run.name for run in runs.list_runs()] == ["whole"]


def test_a_broken_configuration_is_named(home: Path) -> None:
    file = runs.create("it", config(), ME).folder / "config.json"
    file.write_text("{")
    with pytest.raises(ConfigError, match=re.escape(f"{file} is broken; repair it or move the folder away")):
        runs.check("it", config())


@pytest.mark.parametrize(
    ("parent", "options", "source"),
    [(None, [], None), ("whole", [], "whole"), ("whole", ["--from", "other"], "other")],
    ids=["fresh", "forked", "from another"],
)
def test_a_configuration_is_trained_again_from_what_its_run_began_with(
    parent: str | None, options: list[str], source: str | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def train(config: RunConfig[Any], **given: Any) -> RunResult:
        asked.append(given["source"])
        return RunResult(run_id=None, name="again", status="FINISHED")

    monkeypatch.setattr(api, "train", train)
    file = runs.create("it", config(), ME, parent=parent).folder / "config.json"
    command = ["train", "--config", str(file), "--new", "--json", *options]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert asked == [source]


def test_a_new_run_takes_the_next_free_name(home: Path) -> None:
    assert runs.fresh_name("it") == "it"
    runs.create("it", config(), ME)
    runs.create("it-2", config(), ME)
    assert runs.fresh_name("it") == "it-3"


def test_the_folder_keeps_who_and_from_what_source(home: Path) -> None:
    run = runs.create("it", config(), ME, parent="other")
    assert (run.record.user, run.record.commit, run.record.parent) == (ME.user, "abc", "other")
    assert (run.folder / "uncommitted.diff").read_text() == "a change"


HOLD = """
import time
from tokendial import runs
with runs.find("it").lease():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lease_refuses_a_second_process_until_the_first_is_dead(home: Path) -> None:
    run = runs.create("it", config(), ME)
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"worked on by process {holder.pid} on"), run.lease():
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert (run.folder / "lease.json").exists()
    with run.lease():
        assert json.loads((run.folder / "lease.json").read_text())["pid"] == os.getpid()
    assert not (run.folder / "lease.json").exists()


def lease(run: runs.Run, **changes: object) -> Path:
    path = run.folder / "lease.json"
    path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "born": "1"} | changes))
    return path


def test_a_process_number_given_again_holds_nothing(home: Path) -> None:
    run = runs.create("it", config(), ME)
    lease(run)
    with run.lease():
        pass


def test_a_lease_of_another_machine_lasts_as_long_as_it_is_renewed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.create("it", config(), ME)
    path = lease(run, host="elsewhere")
    with pytest.raises(ConfigError, match="on elsewhere"), run.lease():
        pass
    old = time.time() - 2 * runs.LEASE_SECONDS
    os.utime(path, (old, old))
    monkeypatch.setattr(runs, "LEASE_SECONDS", 0.15)
    with run.lease():
        os.utime(path, (old, old))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < old + 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > old + 1

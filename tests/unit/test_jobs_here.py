"""Status, logs and stop of runs in the runs folder here, by name; the driver's log; progress lines."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from jobs_server import dashboard
from tokendial import api, runs
from tokendial.cli import app
from tokendial.driver_log import driver_log
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.identity import Identity
from tokendial.jobs import Cluster
from tokendial.jobs.sent import remember
from tokendial.resolve import resolve
from tokendial.train.driver import with_horizon
from typer.testing import CliRunner


@pytest.fixture
def run(home: Path) -> runs.Run:
    """A run that says RUNNING and has made three steps."""
    config = with_horizon(resolve("digits.tiny", machine_cpus=None))
    made = runs.create("mine", config, Identity(user="ada"))
    (made.folder / "tracking").mkdir()
    rows = [[0, step, {"train/loss": 2.0 / step}] for step in (1, 2, 3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (made.folder / "tracking" / "metrics.jsonl").write_text(lines + '[0, 4, {"train/lo')
    (made.folder / "logs").mkdir()
    (made.folder / "logs" / "rank-0.log").write_text("hello\n")
    return made


def test_a_run_without_a_holder_has_died_and_its_last_whole_step_is_known(run: runs.Run) -> None:
    found = api.status("mine")
    assert [(row.run, row.place, row.status, row.step, row.detail) for row in found] == [
        ("mine", "here", "DIED", 3, "loss 0.667")
    ]
    assert found[0].total == run.config_document()["budget"]["horizon"]
    with run.lease():
        assert api.status("mine")[0].status == "RUNNING"
    run.update(status="FINISHED")
    assert [row.status for row in api.status()] == ["FINISHED"]


def test_logs_of_a_run_here_are_read_from_its_folder(run: runs.Run) -> None:
    assert api.logs("mine") == {"rank-0": "hello\n"}
    with pytest.raises(ConfigError, match="run 'nobody' has no logs: run 'nobody' is not under"):
        api.logs("nobody")


def test_logs_say_that_the_tracking_server_does_not_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del home
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"is not under .*; tracking server http://127\.0\.0\.1:1 is not usable"):
        api.logs("nobody")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("status", "--watch", "--json"), "--watch does not go with --json"),
        (("logs", "mine", "--follow", "--rank", "0"), "--follow goes without --rank and --json"),
        (("logs", "mine", "--follow", "--json"), "--follow goes without --rank and --json"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run: runs.Run, words: tuple[str, ...], message: str) -> None:
    del run
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"tokendial: {message}")


def held(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lease of a run or search."""
    program = (
        "import sys, time; from pathlib import Path; from tokendial.runs import Run\n"
        "with Run(Path(sys.argv[1])).lease():\n    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout as said:
        assert said.readline() == "held\n"
    return holder


def test_stop_tells_the_process_that_holds_a_search(home: Path) -> None:
    folder = home / "found"
    folder.mkdir(parents=True)
    (folder / "plan.json").touch()
    with pytest.raises(ConfigError, match="search 'found' is not at work"):
        api.stop("found")
    holder = held(folder)
    assert api.stop("found") == "here"
    assert holder.wait(10) == -signal.SIGTERM


def test_stop_tells_the_process_that_holds_the_run_and_refuses_where_there_is_none(run: runs.Run) -> None:
    with pytest.raises(ConfigError, match="run 'mine' is not at work; its status is RUNNING"):
        api.stop("mine")
    holder = held(run.folder)
    assert api.stop("mine") == "here"
    assert holder.wait(10) == -signal.SIGTERM
    lease = run.folder / "lease.json"
    lease.write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere", "born": "1"}))
    with pytest.raises(ConfigError, match="run 'mine' is at work on elsewhere; stop it there"):
        api.stop("mine")


def test_what_is_at_work_here_is_stopped_before_its_job_on_a_cluster(
    run: runs.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dashboard() as board:
        board.add("mine-1", "mine", "ada")
        remember("mine", Cluster(board.url), "mine-1")
        monkeypatch.setenv("TOKENDIAL_CLUSTER", board.url)
        holder = held(run.folder)
        assert api.stop("mine") == "here"
        assert holder.wait(10) == -signal.SIGTERM
        assert board.jobs["mine-1"]["status"] == "RUNNING"
        assert api.stop("mine") == board.url
        holder = held(run.folder)
        board.jobs["mine-1"]["status"] = "RUNNING"
        assert api.stop("mine", board.url) == board.url
        assert holder.poll() is None
        assert api.stop("mine") == "here"
        holder.wait(10)


def test_a_cluster_that_is_gone_hides_nothing_of_a_run_here(run: runs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    del run
    gone = "http://127.0.0.1:1"
    remember("mine", Cluster(gone), "mine-1")
    for usual in ("", gone):
        monkeypatch.setenv("TOKENDIAL_CLUSTER", usual)
        here, there = api.status("mine")
        assert (here.place, here.status, here.step) == ("here", "DIED", 3)
        assert (there.place, there.status) == (gone, "UNKNOWN")
        assert (there.error or "").startswith(f"the cluster at {gone} does not answer: ")
        assert api.logs("mine") == {"rank-0": "hello\n"}
    with pytest.raises(WorkFailed, match="does not answer"):
        api.status("mine", gone)


def test_a_run_that_is_not_known_here_is_looked_for_on_the_usual_cluster(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del home
    with dashboard() as board:
        board.add("theirs-1", "theirs", "somebody-else", log="hello\n")
        monkeypatch.setenv("TOKENDIAL_CLUSTER", board.url)
        assert [row.place for row in api.status("theirs")] == [board.url]
        assert api.logs("theirs") == {"driver": "hello\n"}
        assert [row.run for row in api.status()] == ["theirs"]


def test_the_drivers_log_has_each_stage_once_in_a_while_warnings_and_how_it_ended(tmp_path: Path) -> None:
    seen: list[Any] = []

    def work() -> None:
        with driver_log(tmp_path / "logs", seen.append) as progress:
            for step in range(3):
                progress({"stage": "all", "step": step, "total": 3, "loss": 1.0})
            progress({"stage": "export"})
            logging.getLogger("tokendial.tracking").warning("the server is away")
            raise RuntimeError("it ended")

    with pytest.raises(RuntimeError):
        work()
    lines = (tmp_path / "logs" / "driver.log").read_text().splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == [
        "all 0/3 loss 1.000", "export", "the server is away", "RuntimeError: it ended"
    ]  # fmt: skip
    assert len(seen) == 4
    assert logging.getLogger("tokendial").handlers == []


def lines_of(folder: Path) -> list[str]:
    return [line.split(": ", 1)[1] for line in (folder / "driver.log").read_text().splitlines()]


def test_drivers_beside_each_other_have_their_own_lines_until_each_ends(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's own handlers, which a command does not have.
    monkeypatch.setattr(logging.getLogger("tokendial"), "propagate", False)
    warned, turn = logging.getLogger("tokendial.tracking"), threading.Barrier(2)

    def drive(name: str) -> None:
        with driver_log(tmp_path / name, lambda latest: None) as progress:
            turn.wait(10)
            # As a watching thread tells of it.
            told = threading.Thread(target=progress, args=({"stage": f"all of {name}"},))
            told.start()
            told.join()
            warned.warning("%s is warned", name)
            turn.wait(10)
            if name == "first":
                return
            ended.wait(10)
            progress({"stage": f"export of {name}"})
            warned.warning("%s is alone", name)

    ended = threading.Event()
    drivers = [threading.Thread(target=drive, args=(name,)) for name in ("first", "second")]
    for driver in drivers:
        driver.start()
    drivers[0].join()
    ended.set()
    drivers[1].join()
    assert lines_of(tmp_path / "first") == ["all of first", "first is warned"]
    assert lines_of(tmp_path / "second") == [
        "all of second", "second is warned", "export of second", "second is alone"
    ]  # fmt: skip
    said = capfd.readouterr().err.splitlines()
    assert sorted(said) == ["first is warned", "second is alone", "second is warned"]
    assert logging.getLogger("tokendial").handlers == []
    assert logging.getLogger("tokendial").level == logging.NOTSET


def test_runs_of_a_job_lie_outside_rays_copy_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("TOKENDIAL_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert runs.home() == tmp_path / "user" / "runs"

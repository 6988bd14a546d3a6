"""What was sent to a cluster, found again by its name or as the caller's own last: status, logs, stop, follow."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_server import Dashboard, dashboard
from rich.console import Console
from rich.live import Live
from tokendial import api, identity, runs
from tokendial.cli import app
from tokendial.commands.jobs import _watched
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.identity import Identity
from tokendial.jobs import Cluster, Order, Standing
from tokendial.jobs.follow import follow
from tokendial.jobs.send import send
from tokendial.jobs.sent import remember
from tokendial.resolve import resolve
from typer.testing import CliRunner

ME = identity.user_name()
LONG = "".join(f"all {step}/5000 loss 0.5\n" for step in range(1, 3001))


@pytest.fixture
def board(home: Path) -> Iterator[Dashboard]:
    """A cluster with a run of mine, then one of somebody else's."""
    del home
    with dashboard() as made:
        made.add("a-1", "a", ME, log=LONG)
        made.add("b-1", "b", "somebody-else")
        yield made


def test_last_on_a_cluster_is_the_callers_own_newest_job_there(board: Dashboard) -> None:
    board.add("c-1", "c", ME, log="hello\n")
    board.add("d-1", "d", "somebody-else")
    assert [(row.run, row.place) for row in api.status("last", board.url)] == [("c", board.url)]
    assert api.logs("last", board.url) == {"driver": "hello\n"}
    assert api.stop("last", board.url) == board.url
    assert board.jobs["c-1"]["status"] == "STOPPED"
    assert board.jobs["d-1"]["status"] == "RUNNING"


def test_a_cluster_that_has_just_started_is_asked_again(board: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokendial.jobs.cluster.POLL_S", 0.01)
    document = {"submission_id": "n-1", "metadata": {"tokendial_run": "n", "user": ME}}
    board.starting = 2
    assert Cluster(board.url).submit(document) == "n-1"
    assert board.asked.count("POST /api/jobs/") == 3
    monkeypatch.setattr("tokendial.jobs.cluster.START_S", 0.0)
    board.starting = 2
    with pytest.raises(WorkFailed, match="answered POST /api/jobs/ with 500: No available agent"):
        Cluster(board.url).submit(document)


def test_last_on_a_cluster_to_which_the_caller_sent_nothing_is_refused(board: Dashboard) -> None:
    del board.jobs["a-1"]
    for ask in (api.status, api.logs, api.stop):
        with pytest.raises(ConfigError, match=f"run 'last': {ME} has sent nothing to the cluster at {board.url}; "):
            ask("last", board.url)


def test_last_without_a_cluster_is_the_newer_of_what_ran_here_and_what_was_sent(board: Dashboard) -> None:
    remember("a", Cluster(board.url), "a-1")
    assert [(row.run, row.place) for row in api.status("last")] == [("a", board.url)]
    here = runs.create("mine", resolve("digits.tiny", machine_cpus=None), Identity(user=ME))
    here.update(created=time.time() + 60)
    assert [(row.run, row.place) for row in api.status("last")] == [("mine", "here")]
    os.utime(runs.home() / ".sent" / "a.json", (time.time() + 120, time.time() + 120))
    assert set(api.logs("last")) == {"driver"}
    assert api.stop("last") == board.url


def test_status_asks_for_the_end_of_a_log_and_of_jobs_at_work_only(board: Dashboard) -> None:
    board.add("c-1", "c", ME, "SUCCEEDED", "all 5/5\n")
    board.add("e-1", "e", ME, "PENDING")
    rows = {row.run: row for row in api.status(None, board.url)}
    assert (rows["a"].stage, rows["a"].step, rows["a"].total, rows["a"].detail) == ("all", 3000, 5000, "loss 0.5")
    assert (rows["c"].status, rows["c"].step) == ("FINISHED", 0)
    assert (rows["e"].status, rows["e"].step) == ("PENDING", 0)
    # Two are at work; one waits, one has ended.
    assert board.asked == ["GET /api/jobs/", *["GET /api/v0/logs/file"] * 2]
    assert rows["b"].status == "RUNNING"
    assert api.status("c", board.url)[0].step == 5
    assert not [request for request in board.asked if request.endswith("/logs")]


def test_a_watched_status_asks_again_until_it_is_interrupted(board: Dashboard) -> None:
    words = [sys.executable, "-m", "tokendial", "status", "--watch", "--on", board.url]
    watch = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while board.asked.count("GET /api/jobs/") < 4 and time.monotonic() < deadline:
        if board.asked.count("GET /api/jobs/") == 1 and len(board.asked) == 3:
            board.away = 1
        time.sleep(0.05)
    watch.send_signal(signal.SIGINT)
    out, err = watch.communicate(timeout=30)
    assert watch.returncode == 130, err
    assert board.away == 0
    assert b"3000/5000" in out
    assert b"Traceback" not in err
    assert {request for request in board.asked if "logs" in request} == {"GET /api/v0/logs/file"}


def test_what_is_at_work_is_in_sight_where_a_terminal_is_shorter_than_the_table() -> None:
    rows = [Standing(f"run-{age}", "here", "FINISHED", age_s=float(age)) for age in range(100, 0, -1)]
    rows.insert(30, Standing("mine", "here", "RUNNING", age_s=70.5))
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=100, height=20)
    with Live(_watched(rows, "the cluster does not answer"), console=console, auto_refresh=False):
        shown = drawn.getvalue()
        for text in ("the cluster does not answer", "mine", "run-1 "):
            assert text in shown, text
        assert "run-100" not in shown


def test_a_search_that_was_sent_shows_its_trials(board: Dashboard) -> None:
    board.add("s-1", "s", ME, log="planning\ntrials 0/4 000 starting\ntrials 2/4 002 8/12, 003 4/12\n")
    (row,) = api.status("s", board.url)
    assert (row.stage, row.step, row.total, row.detail) == ("trials", 2, 4, "002 8/12, 003 4/12")


def test_how_to_follow_is_said_once_the_job_is_accepted(board: Dashboard) -> None:
    said: list[str] = []
    order = Order("mine", ("train", "--name", "mine"))
    with pytest.raises(ConfigError, match="is not a dashboard's address"):
        api.submit("head:8265", order, say=said.append)
    assert said == []
    assert api.submit(board.url, order, say=said.append) == {"done": True}
    assert said[0] == (
        "mine: sent; follow it again with `tokendial logs mine --follow`, end it with `tokendial stop mine`"
    )
    assert board.asked.index("POST /api/jobs/") > 0
    assert [row.place for row in api.status("mine")] == [board.url]


@pytest.mark.parametrize("url", ["head:8265", "http://127.0.0.1:1"])
def test_a_command_that_could_not_be_sent_says_nothing_of_following(home: Path, url: str) -> None:
    del home
    done = CliRunner().invoke(app, ["train", "digits.tiny", "--on", url])
    assert done.exit_code in (1, 2)
    assert "follow" not in done.stdout


def test_an_order_that_is_at_work_already_is_found_by_its_name_here_too(board: Dashboard) -> None:
    order = Order("mine", ("train", "--name", "mine"))
    api.submit(board.url, order, say=lambda line: None)
    (record,) = (runs.home() / ".sent").iterdir()
    record.unlink()
    (job,) = [job for job in board.jobs.values() if job["metadata"]["tokendial_run"] == "mine"]
    job["status"] = "RUNNING"
    following: list[str] = []

    def say(line: str) -> None:
        following.append(line)
        job["status"] = "SUCCEEDED"

    api.submit(board.url, order, say=say)
    assert board.asked.count("POST /api/jobs/") == 1
    assert following == [
        "mine: at work already; follow it again with `tokendial logs mine --follow`, end it with `tokendial stop mine`"
    ]
    assert record.exists()


def test_a_log_that_breaks_off_is_asked_for_again(board: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[follow.__module__], "POLL_S", 0.01)
    board.add("c-1", "c", ME, "SUCCEEDED", 'first\n{"done": true}\n')
    board.torn = 1
    said: list[str] = []
    assert follow(Cluster(board.url), "c-1", None, said.append) == {"done": True}
    assert said == ["first", '{"done": true}']


def test_what_is_no_dashboard_at_all_is_said_in_one_sentence(home: Path) -> None:
    """A port of Ray's that speaks gRPC, for one."""
    del home

    def answer() -> None:
        other, _ = listener.accept()
        with other:
            other.recv(4096)
            other.sendall(b"\x00\x00\x18\x04\x00\x00")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(WorkFailed, match=f"the cluster at {url} does not answer: BadStatusLine"):
            Cluster(url).jobs()


def test_the_same_order_of_another_tokendial_is_sent(board: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order("mine", ("train", "--name", "mine"))
    submission, _ = send(Cluster(board.url), order)
    board.jobs[submission]["status"] = "RUNNING"
    assert send(Cluster(board.url), order) == (submission, False)
    monkeypatch.setattr("tokendial.jobs.package.code", lambda: b"edited")
    assert send(Cluster(board.url), order)[1]
    assert [document["metadata"]["tokendial_run"] for document in board.sent] == ["mine", "mine"]


def test_how_long_workers_take_to_start_is_for_the_cluster_to_say(board: Dashboard) -> None:
    api.submit(board.url, Order("mine", ("train", "--name", "mine")), say=lambda line: None)
    variables = board.sent[0]["runtime_env"]["env_vars"]
    assert variables["OMP_NUM_THREADS"] == "1"
    assert "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S" not in variables


def test_a_job_whose_driver_was_told_to_stop_was_stopped(board: Dashboard) -> None:
    board.add("c-1", "c", ME, "FAILED", "tokendial: stopped; the same command continues the run\n")
    board.jobs["c-1"]["driver_exit_code"] = 143
    with pytest.raises(WorkFailed, match=r"^the job was stopped; the same command continues the run$"):
        follow(Cluster(board.url), "c-1", None, print)


def test_a_job_at_work_stands_for_its_run_and_not_a_newer_one_that_was_refused(board: Dashboard) -> None:
    board.add("a-2", "a", ME, "FAILED")
    assert [row.status for row in api.status("a", board.url)] == ["RUNNING"]


def test_logs_that_a_cluster_has_not_are_the_tracking_servers(
    board: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is back remembers the job and has lost its log."""
    board.add("c-1", "c", ME, "FAILED")
    board.add("d-1", "d", ME, "PENDING")
    for name, status in (("c", "FAILED"), ("d", "PENDING")):
        with pytest.raises(ConfigError, match=f"the cluster at {board.url} has no log of its job, which is {status}$"):
            api.logs(name, board.url)
    with pytest.raises(ConfigError, match=r"shows its driver's log only; ranks' are in its folder there$"):
        api.logs("a", board.url, rank=0)
    kept = {"driver": "kept\n", "rank-0": "rank\n"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr("tokendial.tracking.logs.fetch_logs", lambda uri, run: kept)
    assert api.logs("c", board.url) == kept
    shown = CliRunner().invoke(app, ["logs", "a", "--rank", "0", "--on", board.url])
    assert (shown.exit_code, shown.stdout) == (0, "rank\n")
    assert api.logs("a", board.url) == {"driver": LONG}


def test_a_cluster_that_stays_away_leaves_a_command_that_finds_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[follow.__module__], "PATIENCE_S", -1.0)
    url = "http://127.0.0.1:1"
    with pytest.raises(RuntimeError, match=f"may still run there: tokendial logs a-1 --follow --on {url}$"):
        follow(Cluster(url), "a-1", None, print)

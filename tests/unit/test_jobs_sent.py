"""What was sent to a cluster, found again by its name or as the caller's own last: status, logs, stop, follow."""

from __future__ import annotations

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
from tokendial import api, identity, runs
from tokendial.cli import app
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.identity import Identity
from tokendial.jobs import Cluster, Order
from tokendial.jobs.follow import follow
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
    board.add("c-1", "c", ME, "PENDING", "hello\n")
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
    while board.asked.count("GET /api/jobs/") < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    watch.send_signal(signal.SIGINT)
    out, err = watch.communicate(timeout=30)
    assert watch.returncode == 130, err
    assert b"3000/5000" in out
    assert b"Traceback" not in err
    assert {request for request in board.asked if "logs" in request} == {"GET /api/v0/logs/file"}


def test_a_search_that_was_sent_shows_its_trials(board: Dashboard) -> None:
    board.add("s-1", "s", ME, log="planning\ntrials: 000 starting 0/4\ntrials: 002 8/12, 003 4/12 2/4\n")
    (row,) = api.status("s", board.url)
    assert (row.stage, row.step, row.total) == ("trials: 002 8/12, 003 4/12", 2, 4)


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


def test_a_cluster_that_stays_away_leaves_a_command_that_finds_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[follow.__module__], "PATIENCE_S", -1.0)
    url = "http://127.0.0.1:1"
    with pytest.raises(RuntimeError, match=f"may still run there: tokendial logs a-1 --follow --on {url}$"):
        follow(Cluster(url), "a-1", None, print)

"""What dies on a real cluster, and what is left to do: the driver, a node with workers, the head with stored state."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from jobs_lab import ROOT, TINY, Place, add_node, environment, kill_node, local_cluster, raylet, restart_head
from run_lab import finished, history, until
from tokendial.bench.lost_head import head_rows
from tokendial.jobs import Cluster

pytestmark = pytest.mark.slow
LONG = ("digits.tiny", *TINY[2:], "budget.steps=60", "checkpoint.every=5")


def checkpoints(place: Place, run: str) -> int:
    return len(list((place.home / run / "checkpoints").glob("*/manifest.json")))


def checkpoint_steps(place: Place, run: str) -> set[str]:
    return {path.parent.name for path in (place.home / run / "checkpoints").glob("*/manifest.json")}


def result(place: Place, run: str) -> dict[str, object]:
    return json.loads((place.home / run / "result.json").read_text())


def test_a_killed_driver_fails_its_job_and_the_same_command_continues(tmp_path: Path) -> None:
    with local_cluster() as place:
        command = ("train", *LONG, "--on", place.url, "--name", "driver")
        client = place.start(tmp_path, *command)
        until("a checkpoint", lambda: checkpoints(place, "driver"), client)
        os.kill(json.loads((place.home / "driver" / "lease.json").read_text())["pid"], signal.SIGKILL)
        ended = finished(client)
        assert ended.code == 1, ended
        assert "the same command continues the run" in ended.err
        died = place.say(tmp_path, "status", "driver", "--json", TOKENDIAL_HOME=str(place.home)).document[0]
        assert died["status"] == "DIED"
        again = place.say(tmp_path, *command)
        assert again.code == 0, again.err
        assert result(place, "driver")["steps"] == 60


def test_a_run_over_two_nodes_loses_one_and_goes_on_when_it_is_back_or_on_what_is_left(tmp_path: Path) -> None:
    with local_cluster(cpus=1) as place:
        node = add_node(place)
        command = ("train", *LONG, "--on", place.url, "--name", "nodes")
        client = place.start(tmp_path, *command, "workers=2")
        until("two checkpoints", lambda: checkpoints(place, "nodes") == 2, client)
        # Each node has one CPU, and each worker asks for one.
        os.kill(raylet(node), signal.SIGKILL)
        driver = place.home / "nodes" / "logs" / "driver.log"
        until("a restart", lambda: "starting 2 as soon as there is room" in driver.read_text(), client)
        node = add_node(place)
        log = place.home / "nodes" / "logs" / "rank-0.log"
        until("its checkpoint", lambda: "continuing from step-" in log.read_text(), client)
        before = checkpoint_steps(place, "nodes")
        until("another checkpoint", lambda: checkpoint_steps(place, "nodes") - before, client)
        os.kill(raylet(node), signal.SIGKILL)
        until("another restart", lambda: driver.read_text().count("as soon as there is room") == 2, client)
        stopped = place.say(tmp_path, "stop", "nodes")
        assert stopped.code == 0, stopped.err
        finished(client)
        assert json.loads((place.home / "nodes" / "run.json").read_text())["status"] == "KILLED"
        left = place.say(tmp_path, *command, "workers=1")
        assert left.code == 0, left.err
        assert result(place, "nodes")["steps"] == 60
        assert list(history(place.home, "nodes", "train/loss")) == list(range(1, 61))


def test_a_head_with_stored_state_remembers_its_jobs_and_a_run_goes_on(tmp_path: Path) -> None:
    with local_cluster(rocksdb=True) as place:
        command = ("train", *LONG, "--on", place.url, "--name", "head")
        client = place.start(tmp_path, *command)
        until("a checkpoint", lambda: checkpoints(place, "head"), client)
        with environment(place.client(tmp_path)):
            before = [job["submission_id"] for job in Cluster(place.url).jobs()]
        kill_node(place.nodes[0])
        restart_head(place)
        with environment(place.client(tmp_path)):
            assert [job["submission_id"] for job in Cluster(place.url).jobs()] == before
        ended = finished(client)
        assert ended.code == 1, ended
        again = place.say(tmp_path, *command)
        assert again.code == 0, again.err
        assert result(place, "head")["steps"] == 60


def test_a_head_killed_under_load_costs_no_request(tmp_path: Path) -> None:
    failed, *_ = head_rows(ROOT / "clusters" / "local", tmp_path, 200)
    assert failed.value == 0, failed

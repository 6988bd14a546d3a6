"""What dies on a real cluster, and what is left to do: the driver, and the head with its stored state."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from jobs_lab import TINY, Place, environment, kill_node, local_cluster, restart_head
from run_lab import finished, until
from tokendial.jobs import Cluster

pytestmark = pytest.mark.slow
LONG = ("digits.tiny", *TINY[2:], "budget.steps=60", "checkpoint.every=5")


def checkpoints(place: Place, run: str) -> int:
    return len(list((place.home / run / "checkpoints").glob("*/manifest.json")))


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

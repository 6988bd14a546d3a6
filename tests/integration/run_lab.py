"""Whole runs on the tests' cluster: by the Python call or the command in this process, or by it in another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from mlflow import MlflowClient
from mlflow.entities import Run as TrackedRun
from tokendial import api, runs
from tokendial.bench.cluster import Said, finished
from tokendial.cli import app
from tokendial.resolve import resolve
from tokendial.results import RunResult
from train_lab import SHORT, TWO_STAGES
from typer.testing import CliRunner

HERE = Path(__file__).parent
WAIT_S = 300
# Scored at each count that it is trained at, as twins need it, and at one more.
RUN = (
    "digits.tiny", TWO_STAGES, "schedule.counts=[4,16]", "schedule.weights=[1,1]", "schedule.phases=[]",
    "evaluation.counts=[1,4,16]", "evaluation.test_examples=8", "evaluation.table_examples=2",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A runs folder with one finished run, `first`, and what training it by the command printed.

    Tests that change it work in a copy of the folder.
    """

    home: Path
    address: str
    said: Said

    @property
    def run(self) -> Path:
        return self.home / "first"

    def say(self, *arguments: str) -> Said:
        return say(*arguments, home=self.home, address=self.address)

    def here(self, *arguments: str) -> Said:
        return here(*arguments, home=self.home)


def trained_place(home: Path, address: str) -> Place:
    said = say("train", *RUN, "--name", "first", home=home, address=address)
    assert said.code == 0, said.err
    until("free CPUs", cluster_is_free)
    return Place(home, address, said)


def train(*overrides: str, **options: Any) -> RunResult:
    """digits.tiny under overrides, to the end."""
    given = {override.partition("=")[0] for override in overrides}
    short = [line for line in SHORT if line.partition("=")[0] not in given]
    return api.train(resolve("digits.tiny", (*short, *overrides)), **options)


def command(*arguments: str, home: Path, address: str | None = None, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start the real command, on the cluster at `address` if one is given; `finished` waits for it."""
    environment = dict(os.environ) | {"TOKENDIAL_HOME": str(home), "COLUMNS": "200"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    environment.pop("LOCAL_RANK", None)
    environment |= {"RAY_ADDRESS": address} if address else {}
    return subprocess.Popen(
        [sys.executable, "-m", "tokendial", *arguments],
        env=environment,
        cwd=cwd or home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def say(*arguments: str, home: Path, address: str | None = None, cwd: Path | None = None) -> Said:
    """Run the real command to its end."""
    return finished(command(*arguments, home=home, address=address, cwd=cwd))


def here(*arguments: str, home: Path) -> Said:
    """Run the command in this process, which has imported already what another would have to."""
    done = CliRunner().invoke(app, arguments, env={"TOKENDIAL_HOME": str(home)}, catch_exceptions=False)
    return Said(done.exit_code, done.stdout, done.stderr)


def until(what: str, true: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for something, failing at once where the process that should bring it about has ended."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        if process is not None and process.poll() is not None:
            out, err = process.communicate()
            raise AssertionError(f"the command ended with {process.returncode} before {what}:\n{out}\n{err}")
        if time.monotonic() > deadline:
            said = None if process is None else kill(process, signal.SIGKILL)
            raise AssertionError(f"no {what} in {WAIT_S} s; the command said {said}")
        time.sleep(0.05)


def step_reached(folder: Path) -> int:
    """The last step whose metrics a run has journalled."""
    journals = list(folder.glob("tracking/*.jsonl"))
    lines = [line for path in journals for line in path.read_text().splitlines() if line.endswith("]")]
    return max((json.loads(line)[1] for line in lines), default=0)


def cluster_is_free() -> bool:
    """Whether every CPU of the cluster is back and no training actor is alive."""
    return ray.available_resources().get("CPU", 0) == ray.cluster_resources()["CPU"]


def training_processes() -> list[int]:
    """Training workers and controllers of this session's cluster, as Ray has named them."""
    raylets = [child for child in psutil.Process().children() if child.name() == "raylet"]
    found = []
    for process in (child for raylet in raylets for child in raylet.children(recursive=True)):
        # Some end while the others are looked at.
        with suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and any(name in title for name in ("RayTrainWorker", "TrainController")):
                found.append(process.pid)
    return found


def kill(process: subprocess.Popen[str], number: signal.Signals) -> Said:
    process.send_signal(number)
    return finished(process)


def tracked(home: Path, name: str) -> tuple[MlflowClient, TrackedRun]:
    """A run's MLflow client and its one MLflow run."""
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db", registry_uri=f"sqlite:///{home}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = [run for run in client.search_runs(experiments) if run.info.run_name == name]
    assert len(found) == 1, f"{name} has {len(found)} MLflow runs"
    return client, found[0]


def history(home: Path, name: str, metric: str) -> Mapping[int, float]:
    """A metric by step; each step must be there once."""
    client, run = tracked(home, name)
    rows = client.get_metric_history(run.info.run_id, metric)
    steps = [row.step for row in rows]
    assert len(steps) == len(set(steps)), f"{metric} has repeated steps: {sorted(steps)}"
    return {row.step: row.value for row in sorted(rows, key=lambda row: row.step)}


def folder_of(result: RunResult) -> Path:
    return runs.find(result.name).folder

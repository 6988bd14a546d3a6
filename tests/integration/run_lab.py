"""Whole runs on the tests' cluster: through the Python call in this process, or through the command in another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from mlflow import MlflowClient
from mlflow.entities import Run as TrackedRun
from tokendial import api, runs
from tokendial.bench.cluster import Said, finished
from tokendial.resolve import resolve
from tokendial.results import RunResult
from train_lab import SHORT

HERE = Path(__file__).parent
WAIT_S = 300


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
    """Processes of this machine that Ray has named as training workers or controllers of this session's cluster."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title.startswith("ray::") and any(name in title for name in ("RayTrainWorker", "TrainController")):
            found.append(int(path.parent.name))
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

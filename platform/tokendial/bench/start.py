"""From the command to its first step, and the memory a worker peaks at: one short run through the real command."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokendial.bench.records import Row, single
from tokendial.failures import WorkFailed
from tokendial.metrics import LOSS

STEPS = 20
MOST_START_S = 30.0
TIMEOUT_S = 300


def start_rows(experiment: str) -> list[Row]:
    """Runs `tokendial train` with its tracking under a folder of its own; everything is warm from the parts before."""
    with tempfile.TemporaryDirectory(prefix="tokendial-bench-") as home:
        overrides = [f"budget.steps={STEPS}", "evaluation.test_examples=64", "evaluation.validation_examples=64"]
        command = [sys.executable, "-m", "tokendial", "train", experiment, *overrides, "--json"]
        began = time.time()
        done = subprocess.run(
            command, env=os.environ | {"TOKENDIAL_HOME": home}, capture_output=True, text=True, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
        whole_s = time.time() - began
        if done.returncode:
            raise WorkFailed(f"{' '.join(command[1:])} failed: {done.stderr.strip()[-400:]}")
        result = json.loads(done.stdout.splitlines()[-1])
        first_s = first_step(Path(home) / "mlflow.db", result["name"]) - began
    peak = max(tally["peak_bytes"] for tally in result["ledger"]["counts"].values()) / 2**20
    setting = f"{experiment}, {STEPS} steps, warm"
    return [
        single("command to first step", setting, first_s, "s", MOST_START_S),
        single("command to result, with scoring of 64 mosaics", setting, whole_s, "s"),
        single("peak memory of a worker (resident)", setting, peak, "MiB"),
    ]


def first_step(database: Path, run: str) -> float:
    """When the loss of a run's first step was logged, seconds since the epoch."""
    connection = sqlite3.connect(database)
    try:
        query = "select min(timestamp) from metrics join runs using (run_uuid) where key = ? and runs.name = ?"
        (milliseconds,) = connection.execute(query, (LOSS, run)).fetchone()
    finally:
        connection.close()
    return milliseconds / 1e3

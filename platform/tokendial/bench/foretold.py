"""A forecast against the run: `train --dry-run` and then `train`, the same words otherwise, one worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokendial.bench.records import Row, single
from tokendial.failures import WorkFailed

EXPERIMENT = "digits.demo"
MOST_OFF = 0.1
PRICE = 3.6


def forecast_rows(folder: Path, steps: int) -> list[Row]:
    """Seconds, FLOPs and money as forecast and as they were."""
    words = (
        EXPERIMENT, f"budget.steps={steps}", "workers=1", f"tracking.price_per_hour={PRICE}",
        "evaluation.counts=[16,144]", "evaluation.test_examples=64", "evaluation.validation_examples=64",
    )  # fmt: skip
    said = _said(folder, *words, "--dry-run")
    run = _said(folder, *words)
    ledger = run["ledger"]
    setting = f"{EXPERIMENT}, {steps} steps, 1 worker"
    money, spent = said["cost"], ledger["worker_seconds"] / 3600 * PRICE
    return [
        single("forecast of the time, off by", setting, _off(said["seconds_training"], ledger["wall_seconds"]), "share",
               MOST_OFF),
        single("forecast of the cost, off by", setting, _off(money, spent), "share", MOST_OFF),
        single("forecast of the FLOPs, off by", setting, _off(said["flops"], run["flops"]), "share", MOST_OFF),
        single("time as forecast", setting, said["seconds_training"], "s"),
        single("time as taken", setting, ledger["wall_seconds"], "s"),
        single("time of the probe", setting, said["probe_seconds"], "s"),
    ]  # fmt: skip


def _off(said: float, taken: float) -> float:
    return abs(said / taken - 1)


def _said(folder: Path, *words: str) -> Mapping[str, Any]:
    environment = os.environ | {"TOKENDIAL_HOME": str(folder / "runs")}
    command = [sys.executable, "-m", "tokendial", "train", *words, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkFailed(f"{' '.join(command[1:])} failed: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])

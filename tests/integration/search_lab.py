"""Spaces whose trials fail in different ways, and what a test asks of a search's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokendial.search.domains import Choice
from train_lab import SHORT

# Trials of a few steps on a handful of images.
QUICK = (*SHORT, "evaluation.validation_examples=2", "checkpoint.every=4")
MARKER = "TOKENDIAL_TEST_MARKER"
# Global batches of a trial of four steps are 0 to 3; a trial meets none of these before its own fault.
FAULTS = {
    "fails": {"fail": [1]},
    "never a number": {"nan": [0, 1, 2, 3, 4, 5]},
    "killed": {"kill": [1], "rank": 0},
    "hangs": {"slow": [1000.0]},
    "fails again": {"fail": [2]},
}
# Every fourth of twenty trials has a fault.
TRIALS = 20
SABOTAGED = dict(zip(range(1, TRIALS, 4), FAULTS, strict=True))


def faulty() -> Mapping[str, Any]:
    """Good candidates with bad ones between them."""
    marker = os.environ[MARKER]
    faults = {number: FAULTS[name] for number, name in SABOTAGED.items()}
    texts = (json.dumps({"marker": f"{marker}-{number}", **faults.get(number, {})}) for number in range(TRIALS))
    return {"description": Choice(tuple(texts))}


def events(home: Path, search: str) -> list[dict[str, Any]]:
    """The ledger of a search, as far as it has come."""
    path = home / search / "trials.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def numbers(home: Path, search: str, event: str) -> list[int]:
    """Trials of the ledger's events of one kind, in order."""
    return [line["trial"] for line in events(home, search) if line["event"] == event]

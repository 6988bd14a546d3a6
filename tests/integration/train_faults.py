"""The digits workload with faults: `train_faults:faulty` does to itself what the run's `description` says.

A fault is JSON in `description`, the one field that neither names a run nor shapes it:
`{"kill": [9], "rank": 1, "marker": FILE}` kills the rank's process when it first meets global batch 9;
`{"nan": [5, 6]}` makes the features of these global batches not a number; `{"fail": [3]}` raises;
`{"slow": [0.5]}` sleeps before each micro-batch. What fired is appended to `marker`, a line each.
`train_faults:uneven` has examples with different numbers of answers; `train_faults:unreadable` has a broken file.
"""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokendial.contracts import Batch, Data, Example, RunConfig, Task
from tokendial.train.order import example_at
from tokendial_workloads.digits.data import IGNORED, DigitsMosaics
from tokendial_workloads.digits.task import DigitsTask
from tokendial_workloads.digits.workload import digits
from torch import Tensor, nn


class FaultyTask(DigitsTask):
    """Recognises global batches by their examples, so it needs to be told neither step nor rank."""

    def __init__(self) -> None:
        super().__init__()
        self._fault: dict[str, Any] = {}
        self._batch_of: dict[str, int] = {}

    def build_model(self, config: RunConfig[Any]) -> Any:
        self._fault = json.loads(config.description)
        size, length = config.global_batch, config.data.train_mosaics
        places = range(size * (2 * (config.budget.horizon or 0) + 10))
        for place in reversed(places):
            self._batch_of[f"train/{example_at(config.seed, place, length)}"] = place // size
        return super().build_model(config)

    def encode(self, model: nn.Module, batch: Batch) -> Tensor:
        features = super().encode(model, batch)
        number = self._batch_of.get(batch["source"][0])
        if number is None:
            return features
        time.sleep(sum(self._fault.get("slow", ())))
        if number in self._fault.get("nan", ()):
            self._note(f"nan {number}")
            return features * float("nan")
        if number in self._fault.get("fail", ()):
            self._note(f"fail {number}")
            raise RuntimeError(f"the sensor of batch {number} is on fire")
        mine = os.environ.get("RANK", "0") == str(self._fault.get("rank"))
        if mine and number in self._fault.get("kill", ()) and not Path(self._fault["marker"]).exists():
            self._note(f"kill {number}")
            os.kill(os.getpid(), signal.SIGKILL)
        return features

    def _note(self, line: str) -> None:
        with Path(self._fault["marker"]).open("a") as file:
            file.write(line + "\n")


def load(config: RunConfig[Any]) -> tuple[Data, Task]:
    data, _ = digits.load(config)
    return data, FaultyTask()


class UnevenData(DigitsMosaics):
    """Every other example keeps its first answer only, so micro-batches differ in their numbers of targets."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = super().collate(examples)
        for row, source in enumerate(batch["source"]):
            if int(source.rpartition("/")[2]) % 2 == 0:
                labels = batch["labels"][row]
                first = int((labels != IGNORED).nonzero()[0])
                labels[first + 1 :] = IGNORED
        return batch


def load_uneven(config: RunConfig[Any]) -> tuple[Data, Task]:
    return UnevenData(), DigitsTask()


class UnreadableData(DigitsMosaics):
    """A file of the data is broken, which shows when it is read."""

    def digests(self, config: RunConfig[Any]) -> Mapping[str, str]:
        raise ValueError(f"data of {config.workload} is broken at line 3")


def load_unreadable(config: RunConfig[Any]) -> tuple[Data, Task]:
    return UnreadableData(), DigitsTask()


unreadable = replace(digits, name="train_faults:unreadable", load=load_unreadable)
uneven = replace(digits, name="train_faults:uneven", load=load_uneven)
faulty = replace(digits, name="train_faults:faulty", load=load)


def fault(marker: Path, **what: Any) -> tuple[str, str]:
    """Overrides that put a fault into a run."""
    return "workload=train_faults:faulty", "description=" + json.dumps(json.dumps({"marker": str(marker), **what}))

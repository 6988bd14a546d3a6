"""One training worker in this process: what a worker is told, what it reports, and ways to cut it short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokendial.contracts import RunConfig
from tokendial.resolve import resolve
from tokendial.train.checkpoint import WEIGHTS, Checkpoint, newest
from tokendial.train.driver import with_horizon
from tokendial.train.worker import Order, Seat, work
from torch import Tensor

# Twelve steps in two stages, and one question on a handful of images: these tests are about training, not quality.
TWO_STAGES = (
    'stages=[{"name": "warm_tower", "share": 4, "train": ["tower"], "objective": "tower"}, {"name": "all", "share": 8}]'
)
SHORT = (TWO_STAGES, "evaluation.counts=[4]", "evaluation.test_examples=2", "evaluation.table_examples=0")


class Cut(Exception):
    """The run is cut short here, as a kill would."""


@dataclass
class Lab:
    """A run's folder and everything its worker logged, by step."""

    folder: Path
    config: RunConfig[Any]
    logged: dict[int, dict[str, float]] = field(default_factory=dict)

    def work(self, cut: int | None = None, weights: Path | None = None) -> Lab:
        """Train to the end, or until the metrics of step `cut` are reported."""
        order = Order(
            config=self.config.model_dump(mode="json"),
            folder=str(self.folder),
            horizon=self.config.budget.horizon or 0,
            weights=str(weights) if weights else None,
        )
        work(order, Seat(0, 1, torch.device("cpu"), self._log(cut), lambda latest: None))
        return self

    def until(self, cut: int) -> Lab:
        """Train until the metrics of step `cut` are reported, and stop there."""
        try:
            self.work(cut)
        except Cut:
            return self
        raise AssertionError(f"the run ended without reporting step {cut}")

    def _log(self, cut: int | None) -> Callable[[int, Mapping[str, float]], None]:
        def log(step: int, values: Mapping[str, float]) -> None:
            self.logged.setdefault(step, {}).update(values)
            if step == cut:
                raise Cut

        return log

    @property
    def losses(self) -> list[float]:
        return [self.logged[step]["train/loss"] for step in sorted(self.logged)]

    @property
    def counts(self) -> list[float]:
        return [self.logged[step].get("train/count", 0.0) for step in sorted(self.logged)]

    @property
    def checkpoint(self) -> Checkpoint:
        found = newest(self.folder / "checkpoints")
        assert found is not None, "no checkpoint"
        return found

    @property
    def weights(self) -> dict[str, Tensor]:
        return final_weights(self.folder)


# The run that its overrides give, trained once; the fixture of this name.
Control = Callable[..., Lab]


def configured(*overrides: str) -> RunConfig[Any]:
    """digits.tiny under overrides, planned."""
    given = {override.partition("=")[0] for override in overrides}
    short = [line for line in SHORT if line.partition("=")[0] not in given]
    return with_horizon(resolve("digits.tiny", (*short, *overrides)))


def final_weights(run: Path) -> dict[str, Tensor]:
    """The tensors a finished run ended with."""
    found = newest(run / "checkpoints")
    assert found is not None, f"{run} has no checkpoint"
    assert found.manifest.kind == "weights", f"{run} did not reach the end of a stage"
    return load_file(found.folder / WEIGHTS)


def assert_bit_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert differing == []

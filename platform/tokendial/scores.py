"""Scoring a model at every count of an explicit grid; no training law is consulted."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendial.contracts import Data, Example, Grade, RunConfig, Task
from tokendial.curve import ItemScores, group_quality, rises, token_curve
from tokendial.experiments import ConfigError
from tokendial.runs import write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn

Graded = dict[int, list[Grade]]


@dataclass(frozen=True)
class Scores:
    """Every answer of a model on a split: at each count, one grade per question in the same order.

    `extras` are means of secondary measures by name and count.
    """

    split: str
    items: ItemScores
    targets: Sequence[str]
    predictions: Mapping[int, Sequence[str]]
    extras: Mapping[str, Mapping[int, float]]

    def measured(self, trained_counts: Collection[int] = ()) -> dict[str, Any]:
        """What a RunResult says of the scores."""
        curve = token_curve(self.items)
        return {
            "autc": curve.autc,
            "autc_ci": curve.autc_ci,
            "curve": curve.points,
            "rises": rises(self.items, [count for count in self.items.counts if count in trained_counts]),
            "groups": group_quality(self.items),
            "extras": {name: dict(line) for name, line in self.extras.items()},
            "split": self.split,
            "data": self.items.data,
        }

    def write(self, path: Path) -> None:
        quality = {str(k): list(v) for k, v in self.items.quality.items()}
        document = {
            "split": self.split,
            "data": self.items.data,
            "sources": list(self.items.sources),
            "groups": list(self.items.groups),
            "quality": quality,
            "targets": list(self.targets),
            "predictions": {str(k): list(v) for k, v in self.predictions.items()},
            "extras": {name: {str(k): v for k, v in line.items()} for name, line in self.extras.items()},
        }
        write_atomically(path, json.dumps(document))

    @classmethod
    def read(cls, path: Path) -> "Scores":
        """Raises ConfigError where the file is broken."""
        try:
            return cls._from(json.loads(path.read_text("utf-8")))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            advice = "delete it with result.json and train the run again to rewrite both"
            raise ConfigError(f"{path} is broken; {advice}") from error

    @classmethod
    def _from(cls, document: Mapping[str, Any]) -> "Scores":
        quality = {int(k): v for k, v in document["quality"].items()}
        # Scores written before have no digest.
        items = ItemScores(document["sources"], quality, document["groups"], document.get("data", ""))
        predictions = {int(k): v for k, v in document["predictions"].items()}
        extras = {name: {int(k): v for k, v in line.items()} for name, line in document["extras"].items()}
        return cls(document["split"], items, document["targets"], predictions, extras)


def examples_of(data: Data, config: RunConfig[Any], split: str, limit: int | None = None) -> list[Example]:
    """The first examples of a split: `limit` of them, or as many as the configuration scores there."""
    settings = config.evaluation
    wanted = limit or (settings.test_examples if split == "test" else settings.validation_examples)
    items = data.datasets(config)[split]
    return [items[i] for i in range(min(wanted, len(items)))]


def grade(
    task: Task,
    model: "nn.Module",
    data: Data,
    examples: Sequence[Example],
    config: RunConfig[Any],
    counts: Sequence[int],
    device: "torch.device",
    dtype: "torch.dtype",
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Graded:
    """Grades of every example at every count; `share` = (rank, world) takes the rank's run of batches."""
    import torch

    from tokendial.train.step import move

    size, (rank, world) = config.evaluation.batch_size, share
    starts = range(0, len(examples), size)
    starts = starts[len(starts) * rank // world : len(starts) * (rank + 1) // world]
    found: Graded = {count: [] for count in counts}
    model.eval()
    with torch.inference_mode():
        for done, start in enumerate(starts):
            chosen = [examples[i] for i in range(start, min(start + size, len(examples)))]
            batch = move(data.collate(chosen), device, dtype)
            features = task.encode(model, batch)
            for count in counts:
                found[count] += task.grade(model, features, batch, count, config.evaluation.max_new_tokens)
            progress(done + 1, len(starts))
    return found


def gather(shares: Sequence[Graded], split: str, digest: str) -> Scores:
    """One table from every rank's grades, in the order of the examples; `digest` is that of the split's data."""
    counts = sorted(shares[0])
    merged = {count: [grade for share in shares for grade in share[count]] for count in counts}
    first = merged[counts[0]]
    quality = {count: [grade.quality for grade in merged[count]] for count in counts}
    items = ItemScores([grade.source for grade in first], quality, [grade.group for grade in first], digest)
    predictions = {count: [grade.prediction for grade in merged[count]] for count in counts}
    extras = {
        name: {count: sum(grade.extra[name] for grade in merged[count]) / len(first) for count in counts}
        for name in first[0].extra
    }
    return Scores(split, items, [grade.target for grade in first], predictions, extras)

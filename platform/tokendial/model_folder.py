"""What the platform adds to an exported Hugging Face folder: `tokendial.json`, `ladder.json` and their digests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tokendial.contracts import Cost
from tokendial.curve import CurvePoint
from tokendial.experiments import ConfigError
from tokendial.runs import write_atomically
from tokendial.train.checkpoint import sha256

CARD, LADDER, DIGESTS = "tokendial.json", "ladder.json", "SHA256SUMS"


class Rung(BaseModel):
    """One count of a ladder; training knows quality and FLOPs, `promote` and each replica measure latency."""

    model_config = ConfigDict(frozen=True)

    count: int
    quality: float
    quality_ci: tuple[float, float]
    cost_flops: float
    latency_ms: float | None = None
    batch: int | None = None
    device: str | None = None


class ModelCard(BaseModel):
    """`tokendial.json`: what a server or evaluator must know of a folder."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    format: int = 1
    workload: str
    run: str
    metric: str
    split: str
    trained_counts: tuple[int, ...]
    evaluated_counts: tuple[int, ...]
    projector: str
    schedule: dict[str, Any]
    commit: str
    autc: float
    data_digests: dict[str, str]
    config: dict[str, Any]
    versions: dict[str, str]


def read_card(folder: Path) -> ModelCard:
    """The card of an exported folder; raises ConfigError where there is none or a broken one."""
    path = folder / CARD
    if not path.is_file():
        raise ConfigError(f"{str(folder)!r} is no model folder of tokendial: it has no {CARD}")
    try:
        return ModelCard.model_validate_json(path.read_text("utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is broken; export the model again") from error


def answer_flops(cost: Cost, count: int) -> float:
    """FLOPs of one forward pass of one example at a count: what a ladder calls its cost."""
    return cost.tower_flops(False) + cost.language_flops(count, frozenset(), backward=False)


def write_cards(
    folder: Path, card: ModelCard, points: Mapping[int, CurvePoint], priced: Mapping[int, float]
) -> None:
    """Write card, ladder and digests into a folder that the workload has exported; `priced` is FLOPs by count."""
    write_atomically(folder / CARD, card.model_dump_json(indent=2))
    rungs = [
        Rung(
            count=count,
            quality=point.quality,
            quality_ci=point.ci,
            cost_flops=priced[count],
        ).model_dump()
        for count, point in points.items()
    ]
    ladder = {"version": 1, "metric": card.metric, "split": card.split, "rows": rungs}
    write_atomically(folder / LADDER, json.dumps(ladder, indent=2))
    write_atomically(folder / DIGESTS, "".join(f"{digest}  {name}\n" for name, digest in digests(folder).items()))


def digests(folder: Path) -> Mapping[str, str]:
    """SHA-256 of every file of a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def check_digests(folder: Path) -> None:
    """Raise ConfigError naming the first file that is not what was written."""
    recorded = dict(line.split("  ", 1)[::-1] for line in (folder / DIGESTS).read_text("utf-8").splitlines())
    found = digests(folder)
    for name in sorted(recorded.keys() | found.keys()):
        if recorded.get(name) != found.get(name):
            raise ConfigError(f"{folder / name} is not as it was exported: missing, new or of another SHA-256")

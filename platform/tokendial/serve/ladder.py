"""The ladder a replica serves: counts with their measured quality and cost, and which of them are worth bending to."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tokendial.experiments import ConfigError
from tokendial.model_folder import LADDER, Rung
from tokendial.serve.costs import Costs


@dataclass(frozen=True)
class Ladder:
    """`admissible` are all counts the model serves; `rungs` those whose quality was measured, by count, rising."""

    admissible: tuple[int, ...]
    rungs: Mapping[int, Rung]

    @property
    def largest(self) -> int:
        """The count of a request that names none: the largest measured one."""
        return max(self.rungs)

    def quality(self, count: int) -> float | None:
        """Expected quality at a count, where it was measured."""
        rung = self.rungs.get(count)
        return None if rung is None else rung.quality

    def efficient(self) -> tuple[int, ...]:
        """Measured counts that no smaller one equals in quality, falling: what bending steps through."""
        kept: list[int] = []
        best = float("-inf")
        for count, rung in sorted(self.rungs.items()):
            if rung.quality > best:
                kept.append(count)
                best = rung.quality
        return tuple(reversed(kept))

    def measured(self, costs: Costs, new_tokens: int, device: str) -> "Ladder":
        """The same with this replica's own latency: a whole answer of `new_tokens`, alone."""
        rungs = {
            count: rung.model_copy(
                update={"latency_ms": 1e3 * costs.alone_s((count,), new_tokens), "batch": 1, "device": device}
            )
            for count, rung in self.rungs.items()
        }
        return Ladder(self.admissible, rungs)


def read_ladder(folder: Path, admissible: Iterable[int]) -> Ladder:
    """The ladder of an exported folder; ConfigError where it is absent, broken or of another model."""
    path = folder / LADDER
    counts = tuple(admissible)
    try:
        document = json.loads(path.read_text("utf-8"))
        rungs = TypeAdapter(list[Rung]).validate_python(document["rows"])
    except FileNotFoundError:
        raise ConfigError(f"{str(folder)!r} has no {LADDER}; export the model again") from None
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is broken; export the model again") from error
    if not rungs or not {rung.count for rung in rungs} <= set(counts):
        raise ConfigError(f"{path} has rows for counts {[rung.count for rung in rungs]}; the model serves {counts}")
    return Ladder(counts, {rung.count: rung for rung in sorted(rungs, key=lambda rung: rung.count)})

"""What a run spent, per token count: tokens, FLOPs, seconds, examples, steps and peak memory; hours and money in all.

Count 0 is work that no visual token entered: the tower's warm-up. The ledger is part of every checkpoint, so a resumed
run continues its own sums.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


@dataclass
class Tally:
    """Sums over the passes at one count, all workers together.

    `steps` counts the optimizer steps in which the count took part, so steps of a mixed batch appear under several.
    The passes of a teacher are tokens, FLOPs and seconds of the teacher's count, but neither examples nor steps.
    `peak_bytes` is the most that any worker process held (workers are compared at each checkpoint): on a GPU in the
    count's own steps; on a CPU by its last step, so a small count that runs after a large one shows the large one's.
    """

    visual_tokens: int = 0
    text_tokens: int = 0
    pad_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    examples: int = 0
    steps: int = 0
    peak_bytes: int = 0

    @property
    def tokens(self) -> int:
        """Tokens through the language model, padding included."""
        return self.visual_tokens + self.text_tokens + self.pad_tokens

    def add(self, other: "Tally") -> None:
        for name in _NAMES:
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, max(mine, theirs) if name == "peak_bytes" else mine + theirs)


_NAMES = tuple(entry.name for entry in fields(Tally))


@dataclass
class Ledger:
    """`wall_seconds` is the time of the optimizer steps.

    `worker_seconds`, `cpu_seconds` and `gpu_seconds` are time × workers, CPUs and GPUs held, idle or not: training,
    validation, checkpoints, export and scoring. Hours and money follow from them. What a killed worker had held since
    its last checkpoint is not known.
    """

    counts: dict[int, Tally] = field(default_factory=dict)
    steps: int = 0
    wall_seconds: float = 0.0
    worker_seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    price_per_hour: float | None = None

    def add(self, count: int, **amounts: float) -> None:
        """Add the fields of a `Tally` named in `amounts` to the count's sums."""
        unknown = sorted(amounts.keys() - set(_NAMES))
        if unknown or count < 0 or any(value < 0 for value in amounts.values()):
            raise ValueError(f"a ledger adds non-negative {', '.join(_NAMES)} at a count ≥ 0, got {count}: {amounts}")
        self.counts.setdefault(count, Tally()).add(Tally(**amounts))  # pyright: ignore[reportArgumentType]

    def hold(self, seconds: float, workers: int, cpus: float, gpus: float = 0.0) -> None:
        """Add time during which the run held `workers` workers with `cpus` CPUs and `gpus` GPUs in all."""
        self.worker_seconds += seconds * workers
        self.cpu_seconds += seconds * cpus
        self.gpu_seconds += seconds * gpus

    @property
    def total(self) -> Tally:
        """Sums over counts, with `steps` the run's own optimizer steps."""
        total = Tally()
        for tally in self.counts.values():
            total.add(tally)
        total.steps = self.steps
        return total

    @property
    def trained_counts(self) -> tuple[int, ...]:
        """Counts that some step trained at; warming the tower is at none, and passes that only teach train nothing."""
        return tuple(count for count in sorted(self.counts) if count and self.counts[count].steps)

    @property
    def cpu_hours(self) -> float:
        return self.cpu_seconds / 3600

    @property
    def gpu_hours(self) -> float:
        return self.gpu_seconds / 3600

    @property
    def money(self) -> float | None:
        """Worker-hours × price, in the price's currency; None where no price was given."""
        return None if self.price_per_hour is None else self.worker_seconds / 3600 * self.price_per_hour

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what is derived (total, hours, money) is written for readers and ignored by `from_json`."""
        document = asdict(self)
        document["counts"] = {str(count): asdict(self.counts[count]) for count in sorted(self.counts)}
        derived = {"total": asdict(self.total), "cpu_hours": self.cpu_hours, "gpu_hours": self.gpu_hours}
        return {**document, **derived, "money": self.money}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        own = {entry.name: document[entry.name] for entry in fields(cls)}
        own["counts"] = {int(count): Tally(**tally) for count, tally in document["counts"].items()}
        return cls(**own)

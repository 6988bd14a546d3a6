"""Named schedules, each a function of the count set; sources and facts are in `docs/schedules.md`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokendial.schedule.config import ScheduleConfig


@dataclass(frozen=True)
class Preset:
    """`build(counts)` gives the fields; `counts(base)` proposes a count set from the experiment's own."""

    summary: str
    build: Callable[[tuple[int, ...]], dict[str, Any]]
    counts: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple


def _fixed(counts: tuple[int, ...]) -> dict[str, Any]:
    return {"weights": _only(counts, -1)}


def _tokenflex(counts: tuple[int, ...]) -> dict[str, Any]:
    return {"weights": (2, 3, 5) if len(counts) == 3 else tuple(range(1, len(counts) + 1))}


def _mqt(counts: tuple[int, ...]) -> dict[str, Any]:
    phases = [{"until": 0.5, "weights": _only(counts, -1)}, {"until": 1, "weights": _uniform(counts)}]
    return {"weights": _only(counts, -1), "phases": phases}


def _m3(counts: tuple[int, ...]) -> dict[str, Any]:
    return {"weights": _uniform(counts), "mix": "all"}


def _flextok(counts: tuple[int, ...]) -> dict[str, Any]:
    """FlexTok's third law: k uniform on 1..N, rounded up to the next count."""
    gaps = [after - before for before, after in zip((0, *counts), counts, strict=False)]
    return {"weights": tuple(gaps), "mix": "sample"}


def _flexivit(counts: tuple[int, ...]) -> dict[str, Any]:
    return {"weights": _uniform(counts), "distil": {"teacher": "max", "weight": 1.0, "temperature": 1.0}}


def _sandwich(counts: tuple[int, ...]) -> dict[str, Any]:
    return {
        "weights": _uniform(counts),
        "mix": "sandwich",
        "random_counts": min(1, max(0, len(counts) - 2)),
        "distil": {"teacher": "max", "weight": 1.0, "temperature": 1.0},
    }


def _curriculum(counts: tuple[int, ...]) -> dict[str, Any]:
    """Small counts first (cheap steps), large counts last (full detail)."""
    rising = tuple(range(1, len(counts) + 1))
    phases = [{"until": 0.3, "weights": rising[::-1]}, {"until": 1, "weights": rising, "ease": "cosine"}]
    return {"weights": rising[::-1], "phases": phases}


def _uniform(counts: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * len(counts)


def _only(counts: tuple[int, ...], index: int) -> tuple[int, ...]:
    weights = [0] * len(counts)
    weights[index] = 1
    return tuple(weights)


def _powers_of_two(counts: tuple[int, ...]) -> tuple[int, ...]:
    largest, powers = counts[-1], [1]
    while powers[-1] * 2 < largest:
        powers.append(powers[-1] * 2)
    return (*powers, largest) if powers[-1] != largest else tuple(powers)


def _even_prefixes(counts: tuple[int, ...]) -> tuple[int, ...]:
    largest = counts[-1]
    return (*range(2, largest, 2), largest)


PRESETS: Mapping[str, Preset] = {
    "fixed": Preset("always the largest count (a twin's law)", _fixed, lambda counts: counts[-1:]),
    "tokenflex": Preset("one count per step, 2:3:5 over three counts (TokenFLEX)", _tokenflex),
    "mqt": Preset("largest count for half the run, then uniform over even prefixes (MQT)", _mqt, _even_prefixes),
    "m3": Preset("every count in every step, losses averaged (M3)", _m3),
    "flextok": Preset("a count per example, uniform rounded up to powers of two (FlexTok)", _flextok, _powers_of_two),
    "flexivit": Preset("uniform, with distillation from the largest count (FlexiViT)", _flexivit),
    "sandwich": Preset("smallest + largest + one random count per step, distilled (slimmable nets)", _sandwich),
    "curriculum": Preset("small counts first, drifting to large ones", _curriculum),
    "uniform": Preset("one count per step, all equally likely", lambda counts: {"weights": _uniform(counts)}),
}


def preset(name: str, counts: Sequence[int]) -> ScheduleConfig:
    """The named schedule over `counts`; raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"schedule preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    fields = PRESETS[name].build(tuple(counts))
    return ScheduleConfig.model_validate({"preset": name, "counts": tuple(counts), **fields})

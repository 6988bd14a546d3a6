"""What a search may choose from at one dotted path: frozen domains made of scalar parameters.

A domain names its scalars (`scalars`), and turns their chosen values into what the configuration gets (`value`), given
the token counts of the candidate. Scalars are what samplers see: `at(u)` maps u in [0, 1) to a value, `unit` back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

# A weight of a simplex is -log(u), so u away from 0 keeps it finite.
SMALLEST_U = 1e-4
DIGITS = 4
# Beyond it all but one count have a weight of nothing.
MAX_EXPONENT = 8


class Domain(Protocol):
    """Anything that a space may hold at a dotted path."""

    def scalars(self, path: str) -> Mapping[str, Scalar]:
        """Scalar parameters by name, each beginning with the path."""
        ...

    def value(self, path: str, chosen: Mapping[str, Any], counts: Sequence[int]) -> Any:
        """What the configuration gets at the path (JSON), from the chosen scalars and the candidate's counts."""
        ...


class _Alone:
    """What is a domain and its own single scalar, whose chosen value the configuration gets as it is."""

    def scalars(self, path: str) -> Mapping[str, Scalar]:
        return {path: cast("Scalar", self)}

    def value(self, path: str, chosen: Mapping[str, Any], counts: Sequence[int]) -> Any:
        del counts
        return chosen[path]


@dataclass(frozen=True)
class Choice(_Alone):
    """One of some JSON values, in no order."""

    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.options, tuple | list) or not self.options:
            raise ValueError(f"Choice needs a tuple of options, got {self.options!r}")

    def at(self, u: float) -> Any:
        return self.options[min(int(u * len(self.options)), len(self.options) - 1)]

    def unit(self, value: Any) -> float:
        """The middle of the option's share; lists and tuples are the same option."""
        wanted = _plain(value)
        return ([_plain(option) for option in self.options].index(wanted) + 0.5) / len(self.options)


@dataclass(frozen=True)
class Uniform(_Alone):
    """A number between two bounds."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_bounds(self, self.low, self.high)

    def at(self, u: float) -> float:
        return _rounded(self.low + u * (self.high - self.low))

    def unit(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class LogUniform(_Alone):
    """A positive number between two bounds, uniform in its logarithm."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_bounds(self, self.low, self.high)
        _check_positive(self, self.low)

    def at(self, u: float) -> float:
        return _rounded(self.low * (self.high / self.low) ** u)

    def unit(self, value: float) -> float:
        return math.log(value / self.low) / math.log(self.high / self.low)


@dataclass(frozen=True)
class Integers(_Alone):
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _check_whole(self, self.low, self.high)
        _check_bounds(self, self.low, self.high)

    def at(self, u: float) -> int:
        return min(self.low + int(u * (self.high - self.low + 1)), self.high)

    def unit(self, value: int) -> float:
        return (value - self.low + 0.5) / (self.high - self.low + 1)


Scalar = Choice | Uniform | LogUniform | Integers


@dataclass(frozen=True)
class Simplex:
    """Weights that sum to one, one for each count of the candidate, all mixtures equally likely.

    `size` is the most counts that a candidate can have; one with fewer uses the first of the scalars.
    """

    size: int

    def __post_init__(self) -> None:
        _check_whole(self, self.size)
        _check_positive(self, self.size)

    def scalars(self, path: str) -> Mapping[str, Scalar]:
        return {f"{path}[{index}]": Uniform(SMALLEST_U, 1.0) for index in range(self.size)}

    def value(self, path: str, chosen: Mapping[str, Any], counts: Sequence[int]) -> list[float]:
        if len(counts) > self.size:
            raise ValueError(f"{path} has {self.size} weights for {len(counts)} counts {list(counts)}")
        gains = [-math.log(min(chosen[f"{path}[{index}]"], 1 - SMALLEST_U)) for index in range(len(counts))]
        return [round(gain / sum(gains), DIGITS) for gain in gains]


@dataclass(frozen=True)
class Phases:
    """A phase table of two laws: `begin` up to a break, then `end`, reached at once, linearly or along a cosine.

    `constant` in place of an ease is the end law throughout.
    """

    size: int
    earliest: float = 0.1
    latest: float = 0.7

    def __post_init__(self) -> None:
        _check_whole(self, self.size)
        _check_positive(self, self.size)
        _check_bounds(self, self.earliest, self.latest)
        if not 0 < self.earliest < self.latest < 1:
            raise ValueError(f"Phases break between 0 and 1, got {self.earliest} to {self.latest}")

    def _parts(self, path: str) -> tuple[Choice, Uniform, Simplex, Simplex]:
        ease = Choice(("constant", "step", "linear", "cosine"))
        return ease, Uniform(self.earliest, self.latest), Simplex(self.size), Simplex(self.size)

    def scalars(self, path: str) -> Mapping[str, Scalar]:
        ease, until, begin, end = self._parts(path)
        own = {f"{path}.ease": ease, f"{path}.until": until}
        return {**own, **begin.scalars(f"{path}.begin"), **end.scalars(f"{path}.end")}

    def value(self, path: str, chosen: Mapping[str, Any], counts: Sequence[int]) -> list[dict[str, Any]]:
        _, _, begin, end = self._parts(path)
        ease, last = chosen[f"{path}.ease"], end.value(f"{path}.end", chosen, counts)
        if ease == "constant":
            return [{"until": 1, "weights": last}]
        first = begin.value(f"{path}.begin", chosen, counts)
        return [{"until": chosen[f"{path}.until"], "weights": first}, {"until": 1, "weights": last, "ease": ease}]


@dataclass(frozen=True)
class CountPower:
    """Loss weights count ** exponent, scaled to a mean of one: whether small or large counts pull harder."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_bounds(self, self.low, self.high)
        if max(abs(self.low), abs(self.high)) > MAX_EXPONENT:
            raise ValueError(f"CountPower needs exponents from -{MAX_EXPONENT} to {MAX_EXPONENT}, got {self}")

    def scalars(self, path: str) -> Mapping[str, Scalar]:
        return {f"{path}.exponent": Uniform(self.low, self.high)}

    def value(self, path: str, chosen: Mapping[str, Any], counts: Sequence[int]) -> list[float]:
        powers = [count ** chosen[f"{path}.exponent"] for count in counts]
        return [round(power * len(powers) / sum(powers), DIGITS) for power in powers]


@dataclass(frozen=True)
class Distillation:
    """No distillation, or from the largest count with a weight."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_bounds(self, self.low, self.high)
        _check_positive(self, self.low)

    def scalars(self, path: str) -> Mapping[str, Scalar]:
        return {f"{path}.edge": Choice(("none", "max")), f"{path}.weight": LogUniform(self.low, self.high)}

    def value(self, path: str, chosen: Mapping[str, Any], counts: Sequence[int]) -> dict[str, Any] | None:
        if chosen[f"{path}.edge"] == "none":
            return None
        return {"teacher": "max", "weight": chosen[f"{path}.weight"]}


def _check_bounds(domain: object, low: float, high: float) -> None:
    if not all(isinstance(bound, int | float) for bound in (low, high)):
        raise ValueError(f"{type(domain).__name__} needs plain numbers, got {low!r} and {high!r}")
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{type(domain).__name__} needs low < high, both finite, got {low} and {high}")


def _check_positive(domain: object, low: float) -> None:
    if low <= 0:
        raise ValueError(f"{type(domain).__name__} needs positive numbers, got {low}")


def _check_whole(domain: object, *numbers: object) -> None:
    if any(type(number) is not int for number in numbers):
        raise ValueError(f"{type(domain).__name__} needs whole numbers, got {', '.join(map(repr, numbers))}")


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

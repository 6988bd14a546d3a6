"""Drawing from a token schedule: integers in, integers out, no state and no rank, so every process agrees.

The mixer is SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators") folded over the
key (seed, stream, schedule hash, step). Weights are quantised to integers that sum to 2**32 by exact arithmetic.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cached_property, lru_cache

from tokendial.schedule.config import Phase, ScheduleConfig

TOTAL = 1 << 32
_MASK = (1 << 64) - 1
_PI = Decimal("3.14159265358979323846264338328")


@dataclass(frozen=True)
class Group:
    """One count of a step and the positions of the global batch that run at it."""

    count: int
    positions: range | tuple[int, ...]
    loss_weight: float
    teacher_count: int | None = None


@dataclass(frozen=True)
class Plan:
    groups: tuple[Group, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(group.count for group in self.groups)


def mix64(*words: int) -> int:
    """Fold integers into 64 well-mixed bits."""
    state = 0
    for word in words:
        state = (state ^ (word & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


@lru_cache(maxsize=256)
def stream_key(name: str) -> int:
    """64-bit key of a named random stream ("counts", "data", …)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def quantise(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Integers proportional to `weights` that sum to 2**32: floors, then largest remainders, ties to the left."""
    total = sum(weights)
    exact = [weight * TOTAL / total for weight in weights]
    floors = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: (floors[i] - exact[i], i))
    for index in order[: TOTAL - sum(floors)]:
        floors[index] += 1
    return tuple(floors)


def pick(law: Sequence[int], bits: int) -> int:
    """Index drawn from a quantised law by 64 random bits."""
    target = bits >> 32
    for index, share in enumerate(law):
        if target < share:
            return index
        target -= share
    raise AssertionError(f"law {law} does not sum to 2**32")


class TokenSchedule:
    """A schedule ready to draw from; equal configurations draw equal sequences."""

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        self.counts = config.counts
        self._laws: dict[tuple[Fraction, Fraction | None], tuple[int, ...]] = {}

    @cached_property
    def hash(self) -> str:
        """16 hex digits over everything that shapes a draw; the preset's name is not part of it."""
        document = self.config.model_dump(mode="json", exclude={"preset"})
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def draw(self, seed: int, step: int, batch_size: int, horizon: int) -> Plan:
        """The groups of global batch `step` of a run planned for `horizon` steps."""
        law = self.law(step, horizon)
        everyone = range(batch_size)
        match self.config.mix:
            case "one":
                index = pick(law, self._bits(seed, step))
                return Plan((self._group(index, everyone, self._weight(index, law)),))
            case "all":
                return Plan(self._shared(range(len(self.counts)), everyone))
            case "smallest":
                return Plan(self._shared(sorted({0, pick(law, self._bits(seed, step))}), everyone))
            case "sandwich":
                return Plan(self._shared(self._sandwich(law, seed, step), everyone))
            case "sample":
                return Plan(self._sampled(law, seed, step, batch_size))
            case "stratified":
                return Plan(self._stratified(law, batch_size))

    def law(self, step: int, horizon: int) -> tuple[int, ...]:
        """Draw probabilities at `step`, in units of 2**-32."""
        config = self.config
        progress = Fraction(min(step, horizon), horizon)
        start, phase = _phase_at(config, progress)
        moving = config.temperature_end is not None or (phase is not None and phase.ease != "step")
        key = (start, progress if moving else None)
        if key not in self._laws:
            if len(self._laws) > 4096:
                self._laws.clear()
            self._laws[key] = quantise(_cooled(_weights_at(config, progress), _temperature_at(config, progress)))
        return self._laws[key]

    def _bits(self, seed: int, step: int, salt: int = 0) -> int:
        return mix64(seed, stream_key("counts"), int(self.hash, 16), step, salt)

    def _group(self, index: int, positions: range | tuple[int, ...], weight: float) -> Group:
        count, distil = self.counts[index], self.config.distil
        if distil is None:
            return Group(count, positions, weight)
        teacher = self.counts[-1] if distil.teacher == "max" else distil.teacher
        return Group(count, positions, weight, None if teacher == count else teacher)

    def _weight(self, index: int, law: Sequence[int]) -> float:
        """Loss weight of a count that was drawn rather than always run."""
        weights = self.config.loss_weights
        if not self.config.importance:
            return 1.0 if weights is None else weights[index]
        wanted = 1 / len(law) if weights is None else weights[index] / sum(weights)
        return wanted * TOTAL / law[index]

    def _shared(self, indices: Sequence[int], positions: range) -> tuple[Group, ...]:
        """Groups that all see every example; their loss weights sum to 1."""
        weights = self.config.loss_weights or (1.0,) * len(self.counts)
        total = sum(weights[index] for index in indices) or 1.0
        return tuple(self._group(index, positions, weights[index] / total) for index in indices)

    def _sandwich(self, law: Sequence[int], seed: int, step: int) -> list[int]:
        last = len(self.counts) - 1
        chosen = {0, last}
        inner = list(range(1, last))
        for draw in range(self.config.random_counts):
            left = quantise([Fraction(law[i]) for i in inner]) if any(law[i] for i in inner) else None
            bits = self._bits(seed, step, draw)
            index = inner[pick(left, bits) if left else bits % len(inner)]
            inner.remove(index)
            chosen.add(index)
        return sorted(chosen)

    def _sampled(self, law: Sequence[int], seed: int, step: int, batch_size: int) -> tuple[Group, ...]:
        """A count per example, keyed by the example's place in the whole run."""
        members: dict[int, list[int]] = {}
        for position in range(batch_size):
            index = pick(law, self._bits(seed, step * batch_size + position, 1))
            members.setdefault(index, []).append(position)
        return tuple(self._group(i, tuple(members[i]), self._weight(i, law)) for i in sorted(members))

    def _stratified(self, law: Sequence[int], batch_size: int) -> tuple[Group, ...]:
        """Contiguous blocks in proportion to the law, so ranks run the same count at the same micro-step."""
        stratum = self.config.stratum
        blocks = batch_size // stratum
        exact = [Fraction(share * blocks, TOTAL) for share in law]
        shares = [int(value) for value in exact]
        order = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
        for index in order[: blocks - sum(shares)]:
            shares[index] += 1
        groups, start = [], 0
        for index, share in enumerate(shares):
            if share:
                stop = start + share * stratum
                groups.append(self._group(index, range(start, stop), self._weight(index, law)))
                start = stop
        return tuple(groups)


@lru_cache(maxsize=256)
def _fraction(value: float) -> Fraction:
    """A decimal of the configuration, exactly as written."""
    return Fraction(str(value))


def _phase_at(config: ScheduleConfig, progress: Fraction) -> tuple[Fraction, Phase | None]:
    """Start of the phase that a fraction of the run falls into, and the phase; None where there are no phases."""
    start = Fraction(0)
    for phase in config.phases:
        end = _fraction(phase.until)
        if progress < end or end == 1:
            return start, phase
        start = end
    return start, None


def _weights_at(config: ScheduleConfig, progress: Fraction) -> list[Fraction]:
    """Unnormalised weights at a fraction of the run; decimals of the configuration are taken exactly as written."""
    start, phase = _phase_at(config, progress)
    if phase is None:
        return _exact(config.weights)
    index = config.phases.index(phase)
    before = _exact(config.phases[index - 1].weights if index else config.weights)
    share = _ease(phase.ease, (progress - start) / (_fraction(phase.until) - start))
    return [(1 - share) * b + share * a for b, a in zip(before, _exact(phase.weights), strict=True)]


def _exact(weights: Sequence[float]) -> list[Fraction]:
    values = [Fraction(str(weight)) for weight in weights]
    total = sum(values)
    return [value / total for value in values]


def _ease(kind: str, share: Fraction) -> Fraction:
    match kind:
        case "step":
            return Fraction(1)
        case "linear":
            return share
    return (1 - _cosine(share)) / 2


def _cosine(share: Fraction) -> Fraction:
    """cos(π · share) by its Taylor series in decimal arithmetic, the same on every machine."""
    with localcontext() as context:
        context.prec = 28
        angle = _PI * share.numerator / share.denominator
        term = total = Decimal(1)
        for n in range(1, 20):
            term = -term * angle * angle / ((2 * n - 1) * (2 * n))
            total += term
        return Fraction(total)


def _temperature_at(config: ScheduleConfig, progress: Fraction) -> Fraction:
    start = Fraction(str(config.temperature))
    if config.temperature_end is None:
        return start
    return start + (Fraction(str(config.temperature_end)) - start) * progress


def _cooled(weights: Sequence[Fraction], temperature: Fraction) -> list[Fraction]:
    """weight ** (1 / temperature), in decimal arithmetic; 0 stays 0."""
    if temperature == 1:
        return list(weights)
    with localcontext() as context:
        context.prec = 28
        power = Decimal(temperature.denominator) / Decimal(temperature.numerator)
        largest = max(weights)
        return [_power(weight / largest, power) for weight in weights]


def _power(share: Fraction, power: Decimal) -> Fraction:
    """share ** power of a share up to 1; 0 far below what a draw resolves, where Decimal would take seconds."""
    base = Decimal(share.numerator) / Decimal(share.denominator)
    if not base or base.ln() * power < -100:
        return Fraction(0)
    return Fraction(base**power)

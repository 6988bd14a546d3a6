"""What a schedule spends and whom it trains: expected counts and cost, exposure of prefix tokens, stragglers avoided.

Every figure is an average over the horizon, so phases and a moving temperature are included; a horizon longer than
4,096 steps is sampled at 4,096 even steps, because a law depends on progress only.
"""

from collections.abc import Callable, Sequence
from itertools import permutations

from tokendial.schedule.draw import TOTAL, TokenSchedule

MAX_POINTS = 4096

__all__ = ["expected_cost", "expected_count", "expected_max", "expected_passes", "exposure", "mean_law"]


def mean_law(schedule: TokenSchedule, horizon: int) -> tuple[float, ...]:
    """Probability of each count under the law, averaged over the run; mixes that ignore the law do not change it."""
    return _mean(_laws(schedule, horizon))


def expected_passes(schedule: TokenSchedule, horizon: int, batch_size: int | None = None) -> tuple[float, ...]:
    """Expected passes of one example at each count in one step.

    They sum to 1 where an example runs at one count, to the number of counts under `all`, to 2 at most under
    `smallest`, to 2 + random_counts under `sandwich`. `stratified` is rounded to blocks, which needs `batch_size`;
    without it the unrounded law is given.
    """
    match schedule.config.mix:
        case "all":
            return (1.0,) * len(schedule.counts)
        case "smallest":
            return (1.0, *mean_law(schedule, horizon)[1:])
        case "sandwich":
            random_counts = schedule.config.random_counts
            return _mean([_inclusion(law, random_counts) for law in _laws(schedule, horizon)])
        case "stratified" if batch_size is not None:
            return _mean([_shares(schedule, step, batch_size, horizon) for step in _steps(horizon)])
    return mean_law(schedule, horizon)


def expected_count(schedule: TokenSchedule, horizon: int, batch_size: int | None = None) -> float:
    """E[k]: visual tokens an example costs in one step, summed over its passes."""
    return expected_cost(schedule, horizon, float, batch_size)


def expected_cost(
    schedule: TokenSchedule, horizon: int, cost: Callable[[int], float], batch_size: int | None = None
) -> float:
    """E[cost] of one example in one step, in the unit of `cost(k)`; work done once per example is not part of it."""
    passes = expected_passes(schedule, horizon, batch_size)
    return sum(share * cost(count) for share, count in zip(passes, schedule.counts, strict=True) if share)


def exposure(schedule: TokenSchedule, horizon: int, token: int, batch_size: int | None = None) -> float:
    """P(K >= token): how often the `token`-th token of a prefix (from 1) is run, and so gets a gradient."""
    passes = expected_passes(schedule, horizon, batch_size)
    return min(1.0, sum(share for share, count in zip(passes, schedule.counts, strict=True) if count >= token))


def expected_max(schedule: TokenSchedule, horizon: int, ranks: int) -> float:
    """E[max]: largest of `ranks` independent draws from the law, the count a step would wait for if each rank drew."""
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, got {ranks}")
    return sum(_expected_max(schedule.counts, law, ranks) for law in _laws(schedule, horizon)) / len(_steps(horizon))


def _expected_max(counts: Sequence[int], law: Sequence[float], ranks: int) -> float:
    total, below, cumulative = 0.0, 0.0, 0.0
    for count, share in zip(counts, law, strict=True):
        cumulative += share
        total += count * (cumulative**ranks - below)
        below = cumulative**ranks
    return total


def _steps(horizon: int) -> range:
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 step, got {horizon}")
    return range(min(horizon, MAX_POINTS))


def _laws(schedule: TokenSchedule, horizon: int) -> list[tuple[float, ...]]:
    steps = _steps(horizon)
    return [tuple(share / TOTAL for share in schedule.law(step, len(steps))) for step in steps]


def _mean(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))


def _inclusion(law: Sequence[float], random_counts: int) -> tuple[float, ...]:
    """Probability that each count runs in a `sandwich` step: draws without replacement between the two ends."""
    last = len(law) - 1
    chosen = [0.0] * len(law)
    chosen[0] = chosen[last] = 1.0
    for order in permutations(range(1, last), random_counts):
        probability, left = 1.0, set(range(1, last))
        for index in order:
            total = sum(law[i] for i in left)
            probability *= law[index] / total if total else 1 / len(left)
            left.remove(index)
        for index in order:
            chosen[index] += probability
    return tuple(chosen)


def _shares(schedule: TokenSchedule, step: int, batch_size: int, horizon: int) -> tuple[float, ...]:
    points = min(horizon, MAX_POINTS)
    sizes = {group.count: len(group.positions) for group in schedule.draw(0, step, batch_size, points).groups}
    return tuple(sizes.get(count, 0) / batch_size for count in schedule.counts)

"""What a trial is worth: AUTC, the hypervolume of its curve, the price of being good; and fronts over many trials.

The points of a curve are (cost_flops of one answer, quality) at each count, so that one trained model is a whole line
of points. Hypervolume is the share of a plane that points dominate (Zitzler & Thiele 1998): quality in [0, 1] over cost
on a log2 scale, from the base model's cheapest answer to twice its dearest. The plane is the same for all trials of a
search, so that trials whose answers differ in price can be ranked, and it goes on beyond the dearest answer, so that
the quality of the largest count weighs too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from tokendial.curve import autc

Curve = Mapping[int, float]
Costs = Mapping[int, float]
Span = tuple[float, float]
OBJECTIVES = {
    "autc": "area under the token curve over log2 k",
    "hypervolume": "share of the (cost, quality) plane that the curve dominates",
    "cost": "FLOPs of an answer at the smallest count within 5 % of the best of all trials (less is better)",
}
MINIMISED = {"cost"}
SCALARS = ("autc", "hypervolume")
NEARLY = 0.95


def span(base: Costs) -> Span:
    """Where the cost axis of a search begins and ends, by what an answer of its base model costs."""
    return min(base.values()), 2 * max(base.values())


def points(curve: Curve, costs: Costs) -> list[tuple[float, float]]:
    """(cost of an answer, quality) at each count."""
    return [(costs[count], quality) for count, quality in curve.items()]


def worth(names: Iterable[str], curve: Curve, costs: Costs, axis: Span) -> dict[str, float]:
    """The objectives that follow from one curve alone: all but `cost`."""
    measures = {"autc": lambda: autc(dict(curve)), "hypervolume": lambda: hypervolume(points(curve, costs), axis)}
    return {name: measures[name]() for name in names if name != "cost"}


def prices(curves: Mapping[int, tuple[Curve, Costs]]) -> dict[int, float]:
    """`cost` of trials by number; of one that is never good, twice the dearest answer of all."""
    enough = NEARLY * max(quality for curve, _ in curves.values() for quality in curve.values())
    most = 2 * max(cost for _, costs in curves.values() for cost in costs.values())
    return {
        number: min((costs[count] for count, quality in curve.items() if quality >= enough), default=most)
        for number, (curve, costs) in curves.items()
    }


def hypervolume(places: Iterable[tuple[float, float]], axis: Span) -> float:
    """Share of the plane that (cost, quality) points dominate: a staircase over log2 cost."""
    low, high = axis
    area, height, at = 0.0, 0.0, low
    for cost, quality in sorted(place for place in places if place[0] < high):
        begin = max(cost, low)
        area += height * math.log2(begin / at)
        height, at = max(height, quality), begin
    return (area + height * math.log2(high / at)) / math.log2(high / low)


def envelope(curves: Iterable[Curve]) -> dict[int, float]:
    """The best quality of any curve at each count."""
    best: dict[int, float] = {}
    for curve in curves:
        for count, quality in curve.items():
            best[count] = max(quality, best.get(count, 0.0))
    return best


def worst_regret(curve: Curve, best: Curve) -> tuple[int, float]:
    """The count at which a curve is furthest behind the best of all trials, and by how much."""
    return max(((count, best[count] - curve[count]) for count in sorted(curve)), key=lambda item: item[1])


def pareto(points: Sequence[Sequence[float]], minimised: Sequence[bool]) -> list[int]:
    """Indices of the points that no other point beats in every objective; of equal points the first."""
    signed = [[-x if least else x for x, least in zip(point, minimised, strict=True)] for point in points]

    def dominated(mine: int) -> bool:
        return any(
            all(a >= b for a, b in zip(signed[other], signed[mine], strict=True))
            and (signed[other] != signed[mine] or other < mine)
            for other in range(len(signed))
            if other != mine
        )

    return [index for index in range(len(signed)) if not dominated(index)]

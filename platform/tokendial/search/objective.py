"""What a trial is worth: AUTC, the hypervolume of its curve, the price of being good; and fronts over many trials.

The points of a curve are (cost_flops of one answer, quality) at each count, so that one trained model is a whole line
of points. Hypervolume is the share of [0, cost of the largest count] × [0, 1] that points dominate, cost on a log2
scale from the cheapest count (Zitzler & Thiele 1998).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from tokendial.curve import autc

Curve = Mapping[int, float]
Costs = Mapping[int, float]
OBJECTIVES = {
    "autc": "area under the token curve over log2 k",
    "hypervolume": "share of the (cost, quality) plane that the curve dominates",
    "cost": "FLOPs of an answer at the smallest count that comes within 5 % of the curve's best (less is better)",
}
MINIMISED = {"cost"}
SCALARS = ("autc", "hypervolume")
NEARLY = 0.95


def value(name: str, curve: Curve, costs: Costs) -> float:
    """One objective of a curve; all but `cost` are better higher."""
    match name:
        case "autc":
            return autc(dict(curve))
        case "hypervolume":
            return hypervolume([curve], costs)
        case "cost":
            return cost_of_being_good(curve, costs)
    raise ValueError(f"objective {name!r} is unknown; choose from {', '.join(OBJECTIVES)}")


def cost_of_being_good(curve: Curve, costs: Costs) -> float:
    """FLOPs of an answer at the smallest count whose quality is at least 95 % of the curve's best."""
    enough = NEARLY * max(curve.values())
    return costs[min(count for count, quality in curve.items() if quality >= enough)]


def hypervolume(curves: Iterable[Curve], costs: Costs) -> float:
    """Share of the plane that the curves together dominate: their upper envelope, as a staircase over log2 cost."""
    best = envelope(curves)
    counts = sorted(best, key=lambda count: costs[count])
    if len(counts) == 1:
        return best[counts[0]]
    edges = [math.log2(costs[count]) for count in counts]
    area, height = 0.0, 0.0
    for index, count in enumerate(counts[:-1]):
        height = max(height, best[count])
        area += height * (edges[index + 1] - edges[index])
    return area / (edges[-1] - edges[0])


def envelope(curves: Iterable[Curve]) -> dict[int, float]:
    """The best quality of any curve at each count."""
    best: dict[int, float] = {}
    for curve in curves:
        for count, quality in curve.items():
            best[count] = max(quality, best.get(count, 0.0))
    if not best:
        raise ValueError("an envelope needs at least one curve")
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

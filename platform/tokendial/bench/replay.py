"""Searchers replayed on curves that were trained once: what each would have spent to find what it finds.

A searcher asks for schedules of a finite table; a trial costs its allowance, or the share of it that it had spent when
it was pruned. Every figure is a median over seeds, each with its own order. The search's own rules are replayed:
`suggest`, `halving` and `objective`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tokendial.bench.curves import ALLOWANCE, CONTEST_SEEDS, EXPERIMENT, LONG, SETTING, Curves, Row
from tokendial.curve import autc
from tokendial.resolve import resolve
from tokendial.schedule.draw import mix64, stream_key
from tokendial.search import halving, suggest
from tokendial.search.objective import hypervolume, points, prices, span, worth
from tokendial.search.space import coordinates, default_space, scalars
from tokendial.search.suggest import Told

RANDOM_TRIALS = 16
OBJECTIVES = ("autc", "cost")


@dataclass(frozen=True)
class Step:
    """After a trial: what the search has spent in whole trials, and the rows that it has trained to their end."""

    spent: float
    finished: tuple[int, ...]


def order(num: int, seed: int) -> list[int]:
    """A random order of the table."""
    return sorted(range(num), key=lambda index: mix64(seed, stream_key("replay"), index))


def replay_random(rows: Sequence[Row], seed: int) -> list[Step]:
    found: list[int] = []
    steps = []
    for index in order(len(rows), seed):
        found.append(index)
        steps.append(Step(float(len(found)), tuple(found)))
    return steps


def replay_asha(rows: Sequence[Row], seed: int) -> list[Step]:
    """Random order, judged at each rung by the rule of the search itself."""
    shares, recorded = halving.rungs(), [[] for _ in halving.rungs()]
    spent, finished, steps = 0.0, [], []
    for index in order(len(rows), seed):
        passed, ended = 0, False
        for share, curve in rows[index].points[:-1]:
            rung = halving.reached(share, passed, shares)
            if rung is None:
                continue
            score, passed = autc(dict(curve)), rung + 1
            ended = not halving.goes_on(score, recorded[rung])
            recorded[rung].append(score)
            if ended:
                spent += share
                break
        if not ended:
            spent += rows[index].points[-1][0]
            finished.append(index)
        steps.append(Step(spent, tuple(finished)))
    return steps


def replay_parzen(
    rows: Sequence[Row], seed: int, objectives: Sequence[str], costs: Mapping[int, float]
) -> Iterator[Step]:
    """Each suggestion of the space becomes the nearest schedule of the table that was not trained yet."""
    space = default_space(resolve(EXPERIMENT, SETTING))
    names = scalars(space)
    places = [coordinates(space, row.chosen) for row in rows]
    finished: list[int] = []
    for number in range(len(rows)):
        told = _told(rows, finished, objectives, costs)
        wanted = coordinates(space, suggest.parzen(names, seed, number, told, objectives))
        free = [index for index in range(len(rows)) if index not in finished]
        near = min(free, key=lambda index: sum((a - b) ** 2 for a, b in zip(wanted, places[index], strict=True)))
        finished.append(near)
        yield Step(float(number + 1), tuple(finished))


def _told(
    rows: Sequence[Row], finished: Sequence[int], objectives: Sequence[str], costs: Mapping[int, float]
) -> list[Told]:
    curves = {index: rows[index].points[-1][1] for index in finished}
    priced = prices({index: (curve, costs) for index, curve in curves.items()}) if finished else {}
    found = []
    for index, curve in curves.items():
        worths = {**worth(objectives, curve, costs, span(costs)), "cost": priced[index]}
        found.append(Told(rows[index].chosen, tuple(worths[name] for name in objectives), "finished"))
    return found


def spent_to_reach(steps: Iterable[Step], rows: Sequence[Row], target: float) -> float | None:
    """Whole trials' worth of compute until a finished schedule is at least as good as the target."""
    for step in steps:
        if any(rows[index].autc >= target for index in step.finished):
            return step.spent
    return None


def spent_to_cover(
    steps: Iterable[Step], rows: Sequence[Row], costs: Mapping[int, float], share: float
) -> float | None:
    """Whole trials' worth of compute until the finished curves dominate a share of what all of them dominate."""
    axis, places = span(costs), [points(row.points[-1][1], costs) for row in rows]
    whole = hypervolume(chain.from_iterable(places), axis)
    for step in steps:
        if hypervolume(chain.from_iterable(places[index] for index in step.finished), axis) >= share * whole:
            return step.spent
    return None


def replay_rows(table: Curves, seeds: int) -> dict[str, Any]:
    """The figures of the replay, and of the rankings and the contest where `rank` and `versus` were run."""
    rows = table.of("space")
    if len(rows) < RANDOM_TRIALS:
        raise ValueError(f"replay needs at least {RANDOM_TRIALS} collected schedules, got {len(rows)}")
    every = range(seeds)
    random = {seed: replay_random(rows, seed) for seed in every}
    targets = {seed: max(rows[i].autc for i in random[seed][RANDOM_TRIALS - 1].finished) for seed in every}
    target = statistics.median(targets.values())
    searchers = {
        "random": random,
        "asha": {seed: replay_asha(rows, seed) for seed in every},
        "optuna": {seed: replay_parzen(rows, seed, ("autc",), table.costs) for seed in every},
    }
    pareto = {seed: replay_parzen(rows, seed, OBJECTIVES, table.costs) for seed in every}
    reached = {name: _spent(steps, rows, target) for name, steps in searchers.items()}
    covered = [spent_to_cover(pareto[seed], rows, table.costs, 0.95) for seed in every]
    found = {
        "schedules": len(rows),
        "seeds": seeds,
        "best_of_random": {"trials": RANDOM_TRIALS, "autc": round(target, 4)},
        "spent_to_reach_it": reached,
        "of_random": {n: _ratio(line["median"], reached["random"]["median"]) for n, line in reached.items()},
        "pareto_95_percent": {**_summary(covered), "of_exhaustive": _ratio(_summary(covered)["median"], len(rows))},
    }
    return {**found, **rankings(table), **contest(table)}


def _spent(steps: Mapping[int, Iterable[Step]], rows: Sequence[Row], target: float) -> dict[str, float | None]:
    return _summary([spent_to_reach(line, rows, target) for line in steps.values()])


def _summary(spent: Sequence[float | None]) -> dict[str, float | None]:
    """Median and fifths in whole trials, None where that many never got there; `missed` is the share that did not."""
    values = sorted(math.inf if x is None else x for x in spent)
    found = {"low": values[len(values) // 5], "median": values[len(values) // 2], "high": values[4 * len(values) // 5]}
    missed = sum(x is None for x in spent) / len(spent)
    return {**{name: None if x == math.inf else round(x, 3) for name, x in found.items()}, "missed": round(missed, 3)}


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else round(one / other, 3)


def rankings(table: Curves) -> dict[str, Any]:
    """Kendall's tau between two allowances, and between a share of the allowance and its end."""
    short, long = (
        {row.label: row.autc for row in table.of("rank") if row.allowance == allowance}
        for allowance in (ALLOWANCE, LONG)
    )
    both = sorted(short.keys() & long.keys())
    found: dict[str, Any] = {}
    if len(both) > 2:
        tau, p = kendall([short[name] for name in both], [long[name] for name in both])
        found["rank"] = {
            "schedules": len(both),
            "tau": round(tau, 3),
            "p": round(p, 4),
            "allowances": [ALLOWANCE, LONG],
        }
    rows = table.of("space")
    if len(rows) > 2:
        ends = [row.autc for row in rows]
        num = min(len(row.points) for row in rows)
        found["tau_on_the_way"] = {
            round(statistics.fmean(row.points[i][0] for row in rows), 2): round(
                kendall([autc(dict(row.points[i][1])) for row in rows], ends)[0], 3
            )
            for i in range(num - 1)
        }
    return found


def contest(table: Curves) -> dict[str, Any]:
    """AUTC of the found schedule over each other one, and its mean with a 95 % t interval over the seeds.

    Only on seeds that had no part in the choice: the best of many is flattered where it was chosen.
    """
    from scipy.stats import t

    scores: dict[str, dict[int, float]] = {}
    for row in table.of("versus"):
        if row.seed in CONTEST_SEEDS:
            scores.setdefault(row.label, {})[row.seed] = row.autc
    own = scores.pop("found", {})
    found: dict[str, Any] = {}
    for label, line in scores.items():
        over = [own[seed] - line[seed] for seed in sorted(own.keys() & line.keys())]
        if len(over) > 1:
            mean = statistics.fmean(over)
            half = float(t.ppf(0.975, len(over) - 1)) * statistics.stdev(over) / len(over) ** 0.5
            spread = {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}
            found[label] = {"by_seed": [round(each, 4) for each in over], **spread, "better": mean - half > 0}
    return {"found_over": found} if found else {}


def kendall(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Kendall's tau-b and its two-sided p."""
    from scipy.stats import kendalltau

    tau, p = kendalltau(one, other)
    return float(tau), float(p)  # pyright: ignore[reportArgumentType]

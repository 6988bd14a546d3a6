"""What a search found: every trial, groups over seeds with intervals, the best, the Pareto front, what it took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, starmap
from pathlib import Path
from statistics import fmean
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokendial import runs
from tokendial.curve import Difference, Interval, ItemScores, paired_difference, pooled_curve, unlike
from tokendial.experiments import ConfigError
from tokendial.scores import Scores
from tokendial.search.objective import MINIMISED, envelope, hypervolume, pareto, points, span, worst_regret
from tokendial.search.plan import SearchPlan
from tokendial.search.space import label
from tokendial.search.trials import Book, Outcome, Trial

M = TypeVar("M", bound=BaseModel)


class TrialRow(BaseModel):
    """One trial; `regret` is how far its worst count is behind the best trial there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    run: str
    overrides: tuple[str, ...]
    chosen: dict[str, Any]
    outcome: Outcome
    regret: tuple[int, float] | None = None


class Group(BaseModel):
    """Finished trials that differ only in their seed; `autc_ci` is over (seed, source item).

    `lacks` are seeds of a grid whose trial did not finish: its mean is of the others alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    trials: tuple[int, ...]
    seeds: tuple[int, ...]
    lacks: tuple[int, ...] = ()
    values: dict[str, float]
    autc: float
    autc_ci: Interval
    behind: Difference | None = Field(default=None, description="AUTC of the best group minus this one's, paired")

    @property
    def seeds_told(self) -> str:
        """Its seeds as text, those that it lacks too."""
        told = ",".join(map(str, self.seeds))
        return f"{told} (not {','.join(map(str, self.lacks))})" if self.lacks else told


class SearchResult(BaseModel):
    """`result.json` of a search, and the last line of `tokendial search --json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str
    experiment: str
    algorithm: str
    objectives: tuple[str, ...]
    trials: tuple[TrialRow, ...]
    groups: tuple[Group, ...] = Field(
        description="those that lack no seed first, of these the best by the mean of the first objective"
    )
    best: int | None = Field(description="the best trial of the best group; null where all failed")
    front: tuple[int, ...] = Field(description="trials that no other beats in every objective")
    costs: dict[int, float] = Field(description="FLOPs of one answer of the base model at each count")
    hypervolume: float | None = Field(description="of all finished trials' curves together, each at its own costs")
    flops_per_trial: float
    flops: float = Field(description="spent by trials, pruned and failed ones included")
    tower_flops: float = Field(description="spent on warming the towers that trials shared")
    accounting: float = Field(description="largest deviation of a finished trial from its allowance, relative")
    utilisation: float | None = Field(description="seconds in optimizer steps, towers too, over wall seconds × slots")
    overhead_s: float | None = Field(description="median seconds of a finished trial outside its optimizer steps")
    wall_seconds: float
    exhausted: str | None = Field(default=None, description="why there is no candidate beyond these")
    report: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises ConfigError where `result.json` is broken."""
        return _read(cls, folder / "result.json")

    def row(self, number: int) -> TrialRow:
        return next(row for row in self.trials if row.number == number)


def find_search(name: str) -> Path | None:
    """The folder of the search of that name, if there is one."""
    folder = runs.home() / name
    return folder if (folder / "plan.json").is_file() else None


def read_plan(folder: Path) -> SearchPlan:
    """Raises ConfigError where `plan.json` is broken."""
    return _read(SearchPlan, folder / "plan.json")


def _read(kind: type[M], path: Path) -> M:
    try:
        return kind.model_validate_json(path.read_text("utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is broken; repair it or move the folder away") from error


def read_found(name: str) -> SearchResult:
    """What a finished search found; raises ConfigError where there is none."""
    folder = find_search(name)
    if folder is None:
        raise ConfigError(f"search {name!r} is not under {runs.home()}")
    if not (folder / "result.json").exists():
        done, total = len(Book(folder / "trials.jsonl").ended), read_plan(folder).trials
        raise ConfigError(
            f"search {name!r} is not finished: {done} of {total} trials are done; its command continues it, or with "
            f"--trials {done} ends it there"
        )
    return SearchResult.read(folder)


def summarise(plan: SearchPlan, book: Book, base_costs: Mapping[int, float]) -> SearchResult:
    """Put the trials of a finished ledger together; `base_costs` are FLOPs of an answer of the base model by count."""
    curves = [(outcome.curve, outcome.costs) for _, outcome in book.ended if outcome.status == "FINISHED"]
    best_curve, worths = envelope(curve for curve, _ in curves), book.worths(plan.objectives)
    rows = [
        _row(trial, replace(outcome, values=worths.get(trial.number, outcome.values)), best_curve)
        for trial, outcome in sorted(book.ended, key=lambda ended: ended[0].number)
    ]
    finished = [row for row in rows if row.outcome.status == "FINISHED"]
    groups = _groups(plan, finished)
    judged = [[row.outcome.values[name] for name in plan.objectives] for row in finished]
    front = pareto(judged, [name in MINIMISED for name in plan.objectives]) if finished else []
    # A trial that was continued has the steps of every session and the seconds of its last.
    whole = [row.outcome for row in finished if 0 < row.outcome.trained_seconds < row.outcome.seconds]
    outside = sorted(outcome.seconds - outcome.trained_seconds for outcome in whole)
    slot_seconds = sum(session.seconds * session.slots for session in book.sessions)
    tower_flops, tower_seconds = _towers(plan.name)
    trained = tower_seconds + sum(session.trained_seconds for session in book.sessions)
    return SearchResult(
        name=plan.name,
        experiment=plan.experiment,
        algorithm=plan.algorithm,
        objectives=plan.objectives,
        trials=tuple(rows),
        groups=tuple(groups),
        best=_best(plan, groups, finished),
        front=tuple(finished[index].number for index in front),
        costs=dict(base_costs),
        hypervolume=hypervolume(chain.from_iterable(starmap(points, curves)), span(base_costs)) if curves else None,
        flops_per_trial=plan.flops,
        flops=sum(row.outcome.flops for row in rows),
        tower_flops=tower_flops,
        accounting=max((abs(row.outcome.flops / plan.flops - 1) for row in finished), default=0.0),
        utilisation=trained / slot_seconds if slot_seconds else None,
        overhead_s=outside[len(outside) // 2] if outside else None,
        wall_seconds=sum(session.seconds for session in book.sessions),
        exhausted=plan.exhausted,
    )


def _row(trial: Trial, outcome: Outcome, best: Mapping[int, float]) -> TrialRow:
    return TrialRow(
        number=trial.number,
        run=trial.run,
        overrides=trial.candidate.overrides,
        chosen=dict(trial.candidate.chosen),
        outcome=outcome,
        regret=worst_regret(outcome.curve, best) if outcome.status == "FINISHED" else None,
    )


def _groups(plan: SearchPlan, finished: Sequence[TrialRow]) -> list[Group]:
    """Trials grouped by all but the seed, best first, each held against the best over the seeds both have."""
    members: dict[str, list[TrialRow]] = {}
    for row in finished:
        members.setdefault(row.outcome.group, []).append(row)
    scores = {key: {row.outcome.seed or 0: _scores(row) for row in rows} for key, rows in members.items()}
    means = {key: _means(plan, rows) for key, rows in members.items()}
    wanted = plan.space.get("seed", {}).get("options", ()) if plan.algorithm == "grid" else ()
    lacks = {key: tuple(seed for seed in wanted if seed not in scores[key]) for key in members}
    # A mean without the seeds that failed is no better for it.
    ranked = sorted(members, key=lambda key: (bool(lacks[key]), -means[key][plan.objectives[0]]))
    found = []
    for key in ranked:
        curve = pooled_curve(scores[key])
        found.append(
            Group(
                label=label(members[key][0].overrides),
                trials=tuple(row.number for row in members[key]),
                seeds=tuple(sorted(scores[key])),
                lacks=lacks[key],
                values=means[key],
                autc=curve.autc,
                autc_ci=curve.autc_ci,
                behind=None if key == ranked[0] else _behind(scores[ranked[0]], scores[key]),
            )
        )
    return found


def _behind(best: Mapping[int, ItemScores], own: Mapping[int, ItemScores]) -> Difference | None:
    """The paired difference to the best; None where they have no seed in common, or answered other examples."""
    shared = best.keys() & own.keys()
    alike = all(unlike(best[seed], own[seed]) is None for seed in shared)
    return paired_difference(best, own) if shared and alike else None


def _means(plan: SearchPlan, rows: Sequence[TrialRow]) -> dict[str, float]:
    return {name: fmean(row.outcome.values[name] for row in rows) for name in plan.objectives}


def _best(plan: SearchPlan, groups: Sequence[Group], finished: Sequence[TrialRow]) -> int | None:
    if not groups:
        return None
    values = {row.number: row.outcome.values[plan.objectives[0]] for row in finished}
    return max(groups[0].trials, key=lambda number: values[number])


def _scores(row: TrialRow) -> ItemScores:
    return Scores.read(runs.home() / row.run / "scores.json").items


def _towers(search: str) -> tuple[float, float]:
    """FLOPs and seconds of optimizer steps that the finished warm runs of a search took."""
    paths = runs.home().glob(f"{search}.tower-*/result.json")
    results = [json.loads(path.read_text("utf-8")) for path in paths]
    return sum(result["flops"] for result in results), sum(result["seconds"] for result in results)

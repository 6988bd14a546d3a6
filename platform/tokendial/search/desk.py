"""The desk of a search: hands out trials, judges them at rungs, enters how they ended. It knows nothing of Ray.

Everything it decides follows from the plan and the ledger, so a desk that is opened again goes on where it was left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tokendial.contracts import RunConfig
from tokendial.experiments import ConfigError
from tokendial.resolve import resolve
from tokendial.search import halving, suggest
from tokendial.search.objective import Span, span
from tokendial.search.plan import SearchPlan, answer_costs, tower_of, trial_config
from tokendial.search.space import Candidate, candidate, label, scalars
from tokendial.search.suggest import Told
from tokendial.search.trials import Book, Outcome, Rung, Trial
from tokendial.search.warm import tower_name

MAX_ATTEMPTS = 200


@dataclass(frozen=True)
class TrialOrder:
    """What runs a trial: its run and configuration, the warm run it starts from, and when it is judged."""

    number: int
    run: str
    config: dict[str, Any]
    tower_run: str | None
    tower_config: dict[str, Any] | None
    objectives: tuple[str, ...]
    costs: dict[int, float]
    axis: Span
    group: str
    rungs: tuple[float, ...]
    limit_s: float
    search: str


class Desk:
    """One process holds the desk of a search; its caller holds the search's lease."""

    def __init__(self, plan: SearchPlan, folder: Path) -> None:
        self.plan = plan
        self.book = Book(folder / "trials.jsonl")
        self.base = resolve(plan.experiment, plan.overrides)
        self.costs = answer_costs(self.base)
        self.space = plan.domains
        self.scalars = scalars(self.space)
        self.closed = False
        self._unfinished = self._left_over()

    @property
    def finished(self) -> bool:
        """Whether every planned trial has ended."""
        return len(self.book.ended) >= self.plan.trials

    def ask(self) -> TrialOrder | None:
        """The next trial: first those that were left unfinished, then new ones; None where there is none to start."""
        if self.closed:
            return None
        for trial in self._unfinished:
            return self._order(trial, trial_config(self.plan, trial.candidate))
        number = len(self.book.trials)
        if number >= self.plan.trials:
            return None
        chosen, config = self._next(number)
        trial = self.book.asked(number, chosen, f"{self.plan.name}.{number:03d}")
        return self._order(trial, config)

    def judge(self, number: int, share: float, score: float) -> bool:
        """Whether a trial that has spent `share` of its allowance goes on; a judgement once made stands."""
        trial = self.book.trials[number]
        if any(not rung.goes_on for rung in trial.rungs):
            return False
        passed = 1 + max((rung.rung for rung in trial.rungs), default=-1)
        rung = halving.reached(share, passed, self.plan.rungs)
        if rung is None:
            return True
        others = [r.score for t in self.book.trials.values() if t.number != number for r in t.rungs if r.rung == rung]
        goes_on = halving.goes_on(score, others)
        self.book.judged(number, Rung(rung, share, score, goes_on))
        return goes_on

    def retry(self) -> None:
        """Have every trial that failed run again; each goes on from its newest checkpoint."""
        for trial, outcome in self.book.ended:
            if outcome.status == "FAILED":
                self.book.again(trial.number)
        self._unfinished = self._left_over()

    def tell(self, number: int, outcome: Outcome) -> None:
        """Enter how a trial ended; what was told before is not told again."""
        if self.book.trials[number].outcome is None:
            self.book.done(number, outcome)

    def _left_over(self) -> Iterator[Trial]:
        """Trials that an earlier process asked for and that did not end, each once, as far as the plan has room."""
        left = [trial for trial in self.book.trials.values() if trial.outcome is None]
        return iter(left[: max(0, self.plan.trials - len(self.book.ended))])

    def _next(self, number: int) -> tuple[Candidate, RunConfig[Any]]:
        """The first suggestion for a place that can be a run and is not one already; raises ConfigError after many."""
        if self.plan.algorithm == "grid":
            made = candidate(self.space, next(islice(suggest.grid(self.scalars), number, None)), self.base)
            return made, trial_config(self.plan, made)
        known = {trial.candidate.overrides for trial in self.book.trials.values()}
        refusal = "every suggestion was tried before"
        for chosen in self._suggestions(number):
            try:
                made = candidate(self.space, chosen, self.base)
                if made.overrides not in known:
                    return made, trial_config(self.plan, made)
            except ValueError as error:
                refusal = str(error)
        raise ConfigError(f"no admissible candidate in {MAX_ATTEMPTS} suggestions for trial {number}; last: {refusal}")

    def _suggestions(self, number: int) -> Iterator[dict[str, Any]]:
        """What the algorithm suggests for a place, then whatever is left of a space that has a last candidate."""
        for attempt in range(MAX_ATTEMPTS):
            yield self._suggested(number, attempt)
        if suggest.num_combinations(self.scalars) < math.inf:
            yield from suggest.grid(self.scalars)

    def _suggested(self, number: int, attempt: int) -> dict[str, Any]:
        plan = self.plan
        if plan.algorithm == "optuna":
            return suggest.parzen(self.scalars, plan.seed, number, self._told(), plan.objectives, attempt)
        return suggest.random(self.scalars, plan.seed, number, attempt)

    def _told(self) -> list[Told]:
        worths = self.book.worths(self.plan.objectives)
        return [_told(trial, self.plan.objectives, worths.get(trial.number)) for trial in self.book.trials.values()]

    def _order(self, trial: Trial, config: RunConfig[Any]) -> TrialOrder:
        tower = tower_of(self.plan, trial.candidate)
        return TrialOrder(
            number=trial.number,
            run=trial.run,
            config=config.model_dump(mode="json"),
            tower_run=None if tower is None else tower_name(self.plan.name, tower),
            tower_config=None if tower is None else tower.model_dump(mode="json"),
            objectives=self.plan.objectives,
            costs=answer_costs(config),
            axis=span(self.costs),
            group=label(trial.candidate.overrides),
            rungs=self.plan.rungs,
            limit_s=self.plan.limit_s,
            search=self.plan.name,
        )


def check_candidates(plan: SearchPlan) -> None:
    """Raise ConfigError where a grid has a combination that cannot be a run, before anything starts."""
    base, space = resolve(plan.experiment, plan.overrides), plan.domains
    if plan.algorithm != "grid":
        _probe(plan, base)
        return
    for chosen in suggest.grid(scalars(space)):
        made = candidate(space, chosen, base)
        try:
            trial_config(plan, made)
        except ValueError as error:
            raise ConfigError(f"combination {' '.join(made.overrides)} cannot be a run: {error}") from error


def _probe(plan: SearchPlan, base: RunConfig[Any]) -> None:
    """Raise ConfigError where no candidate can be a run, or where a small space has too few that can."""
    space, names, refusal, found = plan.domains, scalars(plan.domains), "", 0
    small = suggest.num_combinations(names) <= MAX_ATTEMPTS
    draws = (suggest.random(names, plan.seed, 0, attempt) for attempt in range(MAX_ATTEMPTS))
    # Of a large space one shows that there are some; the desk passes over the others one by one.
    for chosen in suggest.grid(names) if small else draws:
        try:
            trial_config(plan, candidate(space, chosen, base))
            found += 1
        except ValueError as error:
            refusal = str(error)
        if found == (plan.trials if small else 1):
            return
    if found:
        raise ConfigError(f"--trials {plan.trials} is more than the {found} candidates that can be a run; {refusal}")
    tried = "the space" if small else f"{MAX_ATTEMPTS} draws from the space"
    raise ConfigError(f"no admissible candidate in {tried}; last: {refusal}")


def _told(trial: Trial, objectives: Sequence[str], worth: Mapping[str, float] | None) -> Told:
    if worth is not None:
        return Told(trial.candidate.chosen, tuple(worth[name] for name in objectives), "finished")
    return Told(trial.candidate.chosen, None, "running" if trial.outcome is None else "lost")

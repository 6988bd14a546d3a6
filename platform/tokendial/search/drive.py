"""The driver of a search: plan it, hold its lease, track it, have its trials run, and say what it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendial import environment, identity, runs
from tokendial.contracts import BudgetConfig, RunConfig
from tokendial.driver_log import driver_log
from tokendial.experiments import ConfigError
from tokendial.failures import Terminated, WorkFailed
from tokendial.resolve import resolve
from tokendial.search import budget as allowance
from tokendial.search import suggest, warm
from tokendial.search.desk import Desk, check_candidates
from tokendial.search.found import SearchResult, find_search, read_plan, summarise
from tokendial.search.plan import SearchPlan, check_base, check_request, make_plan, refuse_changes, trial_config
from tokendial.search.space import Space, default_space, lists, load_space, scalars
from tokendial.search.state import State
from tokendial.search.trials import Book, Outcome
from tokendial.tracking import resolve_uri, unsettled
from tokendial.train.driver import data_digests, refuse_other_data, sigterm_raises, with_horizon

if TYPE_CHECKING:
    from tokendial.tracking.searches import SearchRecord

Progress = Callable[[Mapping[str, Any]], None]
DEFAULT_TRIALS = 16


def plan_search(
    experiment: str,
    overrides: Sequence[str] = (),
    algorithm: str | None = None,
    objectives: Sequence[str] = ("autc",),
    trials: int | None = None,
    space: str | None = None,
    budget: str | None = None,
    per_trial: bool = False,
    seed: int = 0,
    limit_s: float = 600.0,
    at_once: int | None = None,
    name: str | None = None,
    new: bool = False,
) -> SearchPlan:
    """A checked plan; raises ConfigError before anything heavy starts.

    Args:
        experiment, overrides: what trials have in common; overrides with lists are the space, each list a Choice.
        algorithm: a name of `suggest.ALGORITHMS`; default grid where lists are given, else asha.
        objectives: names of `objective.OBJECTIVES`, the first of which ranks trials.
        trials: how many; default what a search of that name has, else 16, or every combination of a grid. A search is
            concluded by no more than have ended.
        space: `my_space.py:function`; default the token schedule itself.
        budget: of the whole search, or with `per_trial` of each trial: FLOPs, wall time or worker-hours.
        seed: of the search; trials have the experiment's.
        limit_s: seconds without progress, once it has workers, after which a trial has failed.
        at_once: the most trials at work at once; default as many as fit the cluster.
        name: of the search; default from everything above.
        new: plan another search, under a name of its own, even if this one exists.
    """
    single, several = lists(overrides)
    base = resolve(experiment, single)
    if per_trial and budget is None:
        raise ConfigError("--per-trial goes with --budget; without one each trial gets what the experiment spends")
    if not 0 < limit_s < math.inf:
        raise ConfigError(f"--limit {limit_s:g} is not a number of seconds")
    if space is not None and several:
        raise ConfigError(f"{', '.join(several)} lists values beside --space; put them into the space as Choice(...)")
    domains: Space = load_space(space) if space else several or default_space(base, single)
    algorithm = algorithm or ("grid" if several else "asha")
    check_request(algorithm, objectives, domains)
    check_base(base, domains, single)
    most = suggest.num_combinations(scalars(domains))
    if trials is not None and not 1 <= trials <= most:
        raise ConfigError(f"--trials {trials} is not in 1 to {most}, the combinations of the space")
    who, whole = identity.capture(), with_horizon(base).budget.horizon or 0
    tower = warm.tower_steps(base, whole)
    plan = make_plan(
        domains,
        name=name,
        experiment=experiment,
        overrides=tuple(single),
        base=base.model_dump(mode="json"),
        algorithm=algorithm,
        objectives=tuple(objectives),
        seed=seed,
        trials=trials or int(most if algorithm == "grid" else min(most, DEFAULT_TRIALS)),
        allowance=f"{budget or 'own'}{' per trial' if per_trial else ''}",
        flops=0.0,
        shares_tower=tower > 0,
        limit_s=limit_s,
        at_once=at_once,
        user=who.user,
        commit=who.commit,
    )
    wanted = allowance.parse(budget, per_trial) if budget else None
    if new:
        plan = plan.model_copy(update={"name": runs.fresh_name(plan.name)})
    if find_search(plan.name) is None:
        warmed = warm.without_tower(base).model_copy(update={"budget": BudgetConfig(steps=whole - tower)})
        plan = plan.model_copy(update={"flops": _flops(plan, wanted, warmed if tower else base)})
    else:
        plan = _continued(plan, trials)
    check_candidates(plan)
    return plan


def _flops(plan: SearchPlan, wanted: allowance.Budget | None, config: RunConfig[Any]) -> float:
    """The allowance of each trial of a search that begins now; time is measured on the cluster that trains it."""
    return allowance.flops_per_trial(wanted, config, plan.trials, lambda own: _slots_of(plan, own), _speed_of)


def _slots_of(plan: SearchPlan, config: RunConfig[Any]) -> int:
    environment.apply()
    from tokendial.search import speed

    return min(speed.slots(config), plan.at_once or plan.trials, plan.trials)


def _speed_of(config: RunConfig[Any]) -> float:
    environment.apply()
    from tokendial.search import speed

    return speed.measured_speed(config)


def _continued(plan: SearchPlan, trials: int | None) -> SearchPlan:
    """The plan with what the search of its name began with; raises ConfigError where that was another."""
    folder = runs.home() / plan.name
    before, book = read_plan(folder), Book(folder / "trials.jsonl")
    ended = len(book.ended)
    wanted = plan.trials if trials and not before.exhausted else before.trials
    plan = plan.model_copy(update={"flops": before.flops, "trials": wanted, "exhausted": before.exhausted})
    refuse_changes(before, plan)
    if plan.trials < ended:
        raise ConfigError(
            f"{ended} trials of search {plan.name!r} have ended, and --trials {plan.trials} is fewer; leave it out, "
            "give more, or use --new"
        )
    if plan.base["data"]["path"] != before.base["data"]["path"]:
        _refuse_other_data(plan, book)
    return plan


def _refuse_other_data(plan: SearchPlan, book: Book) -> None:
    """Data may lie elsewhere than it did; raises ConfigError where it is not what trials were trained on."""
    for trial in book.trials.values():
        run = runs.Run(runs.home() / trial.run)
        if (run.folder / "tracking" / "opening.json").exists():
            config = trial_config(plan, trial.candidate)
            refuse_other_data(run, config, data_digests(config))
            return


def search(plan: SearchPlan, progress: Progress = lambda latest: None, retry: bool = False) -> SearchResult:
    """Run what is missing of a search and return what it found; a finished one is returned at once.

    With `retry` trials that failed are run again first.
    """
    folder = runs.home() / plan.name
    if (folder / "run.json").exists():
        raise ConfigError(f"{plan.name!r} is a run; give the search another --name")
    if (folder / "plan.json").exists():
        refuse_changes(read_plan(folder), plan)
    folder.mkdir(parents=True, exist_ok=True)
    with runs.Run(folder).lease(), sigterm_raises():
        desk = Desk(plan, folder)
        if retry:
            desk.retry()
        if not desk.finished:
            # Of fewer trials: it must not pass for the result of what the plan is from now on.
            (folder / "result.json").unlink(missing_ok=True)
        runs.write_atomically(folder / "plan.json", plan.model_dump_json(indent=2))
        if not desk.finished or not (folder / "result.json").exists():
            with driver_log(folder / "logs", lambda latest: None) as log:
                return _worked(plan, desk, folder, _logged(progress, log))
        if unsettled(folder / "tracking"):
            _record(plan, desk, folder).settle()
        return _with_best(SearchResult.read(folder))


def _logged(progress: Progress, log: Progress) -> Progress:
    """Progress that is logged too, without where each trial is, which their own logs say."""

    def show(latest: Mapping[str, Any]) -> None:
        progress(latest)
        log({**latest, "detail": ""})

    return show


def _record(plan: SearchPlan, desk: Desk, folder: Path) -> SearchRecord:
    from tokendial.tracking.searches import SearchRecord

    environment.apply()
    return SearchRecord(resolve_uri(desk.base.tracking.uri, runs.home()), folder, plan)


def _with_best(result: SearchResult) -> SearchResult:
    """The result, unless no trial of it finished; raises WorkFailed then."""
    if result.best is None:
        raise WorkFailed(f"all {len(result.trials)} trials failed; first: {result.trials[0].outcome.cause}")
    return result


def _worked(plan: SearchPlan, desk: Desk, folder: Path, progress: Progress) -> SearchResult:
    progress({"stage": "preparing"})
    record = _record(plan, desk, folder)
    status, failure = "FAILED", "it ended without a result"
    State(status="RUNNING").write(folder)
    try:
        if not desk.finished:
            from tokendial.train import ray_trainer

            ray_trainer.connect()
        record.open()
        if not desk.finished:
            plan = _tuned(plan, desk, folder, progress, record.told)
        progress({"stage": "report"})
        result = _with_best(_reported(summarise(plan, desk.book, desk.costs), plan, folder))
        status, failure = "FINISHED", None
    except (KeyboardInterrupt, Terminated):
        status, failure = "KILLED", "it was stopped; the same command continues it"
        raise
    except (WorkFailed, ConfigError, OSError) as error:
        status, failure = "FAILED", str(error)
        raise
    finally:
        State(status=status, error=failure).write(folder)
        record.close(status, failure)
    return result


def _tuned(
    plan: SearchPlan, desk: Desk, folder: Path, progress: Progress, told: Callable[[int, Outcome], None]
) -> SearchPlan:
    """Run the trials that are missing; the plan comes back as small as there were candidates for."""
    from tokendial.search import tuning

    slots = _slots_of(plan, desk.base)
    refusal = tuning.run(desk, folder, slots, _Board(plan, desk, progress).show, told)
    if refusal is None:
        return plan
    if not desk.book.ended:
        raise refusal
    plan = plan.model_copy(update={"trials": len(desk.book.ended), "exhausted": str(refusal)})
    runs.write_atomically(folder / "plan.json", plan.model_dump_json(indent=2))
    return plan


def _reported(result: SearchResult, plan: SearchPlan, folder: Path) -> SearchResult:
    """The result with its page and figure drawn, written down."""
    from tokendial.report.search import curves_png, search_html

    path = folder / "report.html"
    result = result.model_copy(update={"report": str(path)})
    runs.write_atomically(path, search_html(result, plan.domains))
    if result.groups:
        curves_png(result, folder / "figures" / "curves.png")
    runs.write_atomically(folder / "result.json", result.model_dump_json(indent=1))
    return result


class _Board:
    """Progress of a search as one line: trials done, and where those in progress are."""

    def __init__(self, plan: SearchPlan, desk: Desk, progress: Progress) -> None:
        from tokendial.gauges import SearchGauges

        self._plan, self._desk, self._progress = plan, desk, progress
        self._places: dict[int, str] = {}
        self._gauges = SearchGauges(plan.name, plan.trials, plan.flops * plan.trials)

    def show(self, number: int, place: Mapping[str, Any]) -> None:
        where = f"{place['step']}/{place['total']}" if "total" in place else place.get("stage", "starting")
        self._places[number] = f"{number:03d} {where}"
        done = {trial.number for trial, _ in self._desk.book.ended}
        running = [text for n, text in sorted(self._places.items()) if n not in done]
        self._gauges.trials(self._desk.book)
        place = {"stage": "trials", "step": len(done), "total": self._plan.trials}
        self._progress({**place, "detail": ", ".join(running)})

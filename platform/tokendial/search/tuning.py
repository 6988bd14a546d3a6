"""The Ray Tune side of a search: trials as function trainables, each with a Ray Train run inside. Only here is Tune.

A trial driver holds no CPU, only a sliver of the head node, so that it never takes the place of the workers it waits
for. Tune's own experiment state is not needed: the desk's ledger is what a search is continued from.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune import PlacementGroupFactory, RunConfig, TuneConfig, Tuner
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tokendial import environment, runs
from tokendial.experiments import ConfigError
from tokendial.failures import Terminated, WorkFailed
from tokendial.resolve import from_document
from tokendial.search.desk import Desk, TrialOrder
from tokendial.search.objective import worth
from tokendial.search.trial import POLL_S, Watch, allowance_spent, failed, last_curve, pruned, run_trial
from tokendial.search.trials import Outcome, Session, outcome_of

SLIVER = {"node:__internal_head__": 0.001}
REPORT_S = 2.0
# Of trials that did not complete Tune tells by its own names; the search tells of them by number and cause.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
Progress = Callable[[int, Mapping[str, Any]], None]


@ray.remote(num_cpus=0)
class Stops:
    """Which trials have to stop: `all` when the search was told to."""

    def __init__(self) -> None:
        self._numbers: set[int | str] = set()

    def add(self, number: int | str) -> None:
        self._numbers.add(number)

    def has(self, number: int) -> str | None:
        return "search" if "all" in self._numbers else "pruned" if number in self._numbers else None


def stops_here() -> Any:
    """A `Stops` beside the driver: on another node it would be lost with that node, and every trial after it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Stops.options(scheduling_strategy=here).remote()


class Suggestions(Searcher):
    """Tune's view of the desk: trials are asked for, judged and entered there. Judgements go out through `Stops`."""

    def __init__(self, desk: Desk, stops: Any, progress: Progress, told: Callable[[int, Outcome], None]) -> None:
        super().__init__()
        self._desk, self._stops, self._progress, self._on_told = desk, stops, progress, told
        self._orders: dict[str, tuple[TrialOrder, float]] = {}
        self.refusal: ConfigError | None = None

    def suggest(self, trial_id: str) -> Any:
        try:
            order = self._desk.ask()
        except ConfigError as error:
            self.refusal, order = error, None
        if order is None:
            return Searcher.FINISHED
        self._orders[trial_id] = order, time.monotonic()
        # As text, because Tune takes nested mappings apart.
        return {"order": json.dumps(asdict(order))}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        number = self._orders[trial_id][0].number
        if "share" in result and not self._desk.judge(number, result["share"], result["score"]):
            self._stops.add.remote(number)
        self._progress(number, json.loads(result.get("place", "{}")))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        order, began = self._orders[trial_id]
        document = (result or {}).get("outcome")
        if document is not None:
            outcome = outcome_of(json.loads(document))
        elif self._desk.closed:
            return
        else:
            outcome = failed(order, "the process of the trial died", began)
        self._desk.tell(order.number, outcome)
        self._on_told(order.number, outcome)

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its searcher to disk; there is nothing in it that the ledger does not have."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        del checkpoint_path


def run(
    desk: Desk,
    folder: Path,
    slots: int,
    progress: Progress,
    told: Callable[[int, Outcome], None],
) -> ConfigError | None:
    """Run trials until the desk has no more, `slots` at once; told to stop, end the running ones and raise.

    Returns why there are fewer than planned, where the space has no further candidate.

    Tune runs in a thread of its own, where it leaves the signal handlers of this process alone.
    """
    # What Tune would write beside each trial and on the terminal, the run store and the command write themselves.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    stops = stops_here()
    suggestions = Suggestions(desk, stops, progress, told)
    payload = {"stops": stops, "home": str(runs.home()), "cwd": os.getcwd(), "path": sys.path}
    tuner = Tuner(
        ray.tune.with_resources(
            ray.tune.with_parameters(_trial, **payload), PlacementGroupFactory([SLIVER], strategy="PACK")
        ),
        tune_config=TuneConfig(
            search_alg=suggestions,
            num_samples=-1,
            max_concurrent_trials=slots,
            reuse_actors=True,
        ),
        run_config=RunConfig(name=f"tune-{time.time_ns():x}", storage_path=str(folder / "ray"), verbose=0),
    )
    began, before = time.monotonic(), _trained(desk)
    # A future and not a thread to join: one whose join a signal interrupts passes for ended in Python 3.11.
    with ThreadPoolExecutor(1, "tokendial-tune") as pool:
        tuning = pool.submit(tuner.fit)
        try:
            while not wait([tuning], POLL_S).done:
                pass
        except (KeyboardInterrupt, Terminated):
            desk.closed = True
            stops.add.remote("all")
            wait([tuning])
            raise
        finally:
            desk.book.worked(Session(time.monotonic() - began, slots, _trained(desk) - before))
            ray.kill(stops)
    if (failure := tuning.exception()) is not None:
        last = (str(failure).strip() or type(failure).__name__).splitlines()[-1]
        raise WorkFailed(f"Ray Tune stopped: {last[:500]}") from failure
    return suggestions.refusal


def _trained(desk: Desk) -> float:
    """Seconds of optimizer steps in the ledger."""
    # A trial that an earlier session had trained, and this one only entered, took no time of its slot.
    return sum(min(outcome.trained_seconds, outcome.seconds) for _, outcome in desk.book.ended)


def _trial(config: dict[str, Any], stops: Any, home: str, cwd: str, path: list[str]) -> None:
    """Entry of one trial's process, which may have run another trial before."""
    os.environ["TOKENDIAL_HOME"] = home
    os.chdir(cwd)
    sys.path += [folder for folder in path if folder not in sys.path]
    environment.apply()
    fields = json.loads(config["order"])
    order = TrialOrder(**{**fields, "costs": {int(count): cost for count, cost in fields["costs"].items()}})
    watch, began = Watch(), time.monotonic()
    spent = allowance_spent(from_document(order.config)) if order.rungs else []
    judged, reported = -1, 0.0
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(run_trial, order, watch)
        while not wait([working], POLL_S).done:
            why = ray.get(stops.has.remote(order.number))
            if why is not None:
                watch.stop.set()
            watch.check(order.limit_s)
            if time.monotonic() - reported < REPORT_S:
                continue
            reported = time.monotonic()
            news: dict[str, Any] = {"place": json.dumps(watch.place)}
            found = last_curve(order) if order.rungs else None
            if found is not None and found[0] > judged:
                judged = found[0]
                news["share"] = spent[judged] / spent[-1]
                first = order.objectives[0]
                news["score"] = worth((first,), found[1], order.costs, order.axis)[first]
            ray.tune.report(news)
        try:
            outcome = working.result()
        except Terminated:
            if ray.get(stops.has.remote(order.number)) != "pruned":
                return
            outcome = pruned(order, began)
    ray.tune.report({"outcome": json.dumps(asdict(outcome))})

"""One trial: warm the tower if nobody has, train the candidate to its allowance, and say what it is worth."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokendial import metrics, runs
from tokendial.contracts import RunConfig
from tokendial.experiments import workload
from tokendial.failures import Terminated
from tokendial.resolve import from_document
from tokendial.results import RunResult
from tokendial.search.budget import spent_after
from tokendial.search.desk import TrialOrder
from tokendial.search.objective import worth
from tokendial.search.trials import Outcome
from tokendial.tracking.journal import read_metrics

POLL_S = 0.25
GRACE_S = 60.0


@dataclass
class Watch:
    """What is seen of a trial while it runs: where it is, its curve so far, and whether it has to stop."""

    stop: threading.Event = field(default_factory=threading.Event)
    place: Mapping[str, Any] = field(default_factory=dict)
    moved: float = field(default_factory=time.monotonic)
    hung: bool = False

    def progress(self, latest: Mapping[str, Any]) -> None:
        self.place, self.moved = dict(latest), time.monotonic()

    def check(self, limit_s: float) -> None:
        """Stop a trial that has shown nothing new for too long; one that waits for room for its workers may wait."""
        if self.place.get("waits"):
            self.moved = time.monotonic()
        if time.monotonic() - self.moved > limit_s and not self.stop.is_set():
            self.hung = True
            self.stop.set()


def run_trial(order: TrialOrder, watch: Watch) -> Outcome:
    """Train the trial's run; what goes wrong becomes the outcome's cause.

    Raises Terminated where the whole search was told to stop; a trial that was pruned or hung ends with an outcome.
    """
    from tokendial.train.driver import train

    began = time.monotonic()
    config = from_document(order.config)
    try:
        tower = _tower(order, watch)
        # What all trials share is no part of what this one took.
        began = time.monotonic()
        _wait_for(order.run, watch)
        result = train(
            config, name=order.run, new=False, source=tower, progress=watch.progress, twin_of=order.search,
            stop=watch.stop,
        )  # fmt: skip
        return _finished(order, result, time.monotonic() - began)
    except Terminated:
        if watch.hung:
            return failed(order, f"no progress for {order.limit_s:g} s", began)
        raise
    # A trial may fail in any way that its candidate makes it fail; the search records the cause and goes on.
    except Exception as error:
        return failed(order, f"{type(error).__name__}: {error}"[:1000], began)


def last_curve(order: TrialOrder) -> tuple[int, dict[int, float]] | None:
    """Step and quality by count of the newest whole validation curve that a run has journalled."""
    rows: dict[int, dict[int, float]] = {}
    for record in read_metrics(runs.home() / order.run / "tracking" / "metrics.jsonl"):
        if line := metrics.validation_curve(record.values):
            rows.setdefault(record.step, {}).update(line)
    whole = [(step, curve) for step, curve in sorted(rows.items()) if curve.keys() >= order.costs.keys()]
    return whole[-1] if whole else None


def allowance_spent(config: RunConfig[Any]) -> list[float]:
    """FLOPs after each step of a trial."""
    return spent_after(config, workload(config.workload).cost(config))


def pruned(order: TrialOrder, began: float) -> Outcome:
    """The outcome of a trial that was stopped at a rung: the curve it had there."""
    found = last_curve(order)
    assert found is not None, "a trial is pruned by a curve"
    curve = found[1]
    return Outcome(
        status="PRUNED",
        values=worth(order.objectives, curve, order.costs, order.axis),
        curve=curve,
        costs=order.costs,
        seconds=time.monotonic() - began,
        run_id=runs.Run(runs.home() / order.run).record.run_id,
        group=order.group,
        seed=order.config["seed"],
        **_spent(order),
    )


def _spent(order: TrialOrder) -> dict[str, Any]:
    """Steps, FLOPs and seconds of the optimizer steps that an unfinished run has journalled."""
    records = read_metrics(runs.home() / order.run / "tracking" / "metrics.jsonl")
    seconds = {r.step: r.values[metrics.STEP_SECONDS] for r in records if metrics.STEP_SECONDS in r.values}
    steps = max(seconds, default=0)
    flops = allowance_spent(from_document(order.config))[steps] if steps else 0.0
    return {"steps": steps, "flops": flops, "trained_seconds": sum(seconds.values())}


def _tower(order: TrialOrder, watch: Watch) -> str | None:
    """Name of the finished warm run that the trial starts from; the first trial that needs it trains it."""
    if order.tower_run is None or order.tower_config is None:
        return None
    from tokendial.train.driver import train

    def show(latest: Mapping[str, Any]) -> None:
        watch.progress({**latest, "stage": f"tower: {latest.get('stage', '')}"})

    with _alone(runs.home() / order.search / f"{order.tower_run}.lock", watch):
        config = from_document(order.tower_config)
        _wait_for(order.tower_run, watch)
        train(
            config, name=order.tower_run, new=False, source=None, progress=show, twin_of=order.search, stop=watch.stop
        )  # fmt: skip
    return order.tower_run


def _wait_for(run: str, watch: Watch) -> None:
    """Let the process of a killed driver, which may outlive it by moments, let go of the run."""
    deadline = time.monotonic() + GRACE_S
    while runs.Run(runs.home() / run).held() and time.monotonic() < deadline:
        if watch.stop.wait(POLL_S):
            raise Terminated


@contextmanager
def _alone(path: Path, watch: Watch) -> Iterator[None]:
    """Hold a lock that the system gives back if this process dies; others wait, and may be told to stop meanwhile."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                watch.progress({"stage": "waiting for the tower"})
                if watch.stop.wait(POLL_S):
                    raise Terminated from None
        yield


def _finished(order: TrialOrder, result: RunResult, seconds: float) -> Outcome:
    curve = {count: point.quality for count, point in result.curve.items()}
    return Outcome(
        status="FINISHED",
        values=worth(order.objectives, curve, order.costs, order.axis),
        curve=curve,
        costs=order.costs,
        flops=result.flops,
        steps=result.steps,
        seconds=seconds,
        trained_seconds=result.seconds,
        run_id=result.run_id,
        group=order.group,
        seed=result.seed,
    )


def failed(order: TrialOrder, cause: str, began: float) -> Outcome:
    """The outcome of a trial that failed: what its run had trained by then."""
    folder = runs.home() / order.run
    return Outcome(
        status="FAILED",
        cause=cause,
        seconds=time.monotonic() - began,
        run_id=runs.Run(folder).record.run_id if (folder / "run.json").exists() else None,
        group=order.group,
        seed=order.config["seed"],
        **_spent(order),
    )

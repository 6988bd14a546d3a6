"""The driver of a run: name it, lease it, track it, have it trained, and turn what the workers left into a result."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokendial import environment, identity, runs
from tokendial.contracts import RunConfig
from tokendial.curve import group_quality, token_curve
from tokendial.experiments import ConfigError, workload
from tokendial.failures import Terminated, WorkFailed
from tokendial.ledger import Ledger
from tokendial.model_folder import ModelCard, answer_flops, write_cards
from tokendial.results import ExampleAnswers, RunResult, read_result, write_result
from tokendial.runs import Run
from tokendial.schedule import TokenSchedule
from tokendial.scores import Scores
from tokendial.train.checkpoint import WEIGHTS, newest
from tokendial.train.horizon import horizon
from tokendial.versions import versions

Progress = Callable[[Mapping[str, Any]], None]


def train(
    config: RunConfig[Any],
    name: str | None,
    new: bool,
    source: str | None,
    progress: Progress,
    parent: str | None = None,
) -> RunResult:
    """See `tokendial.api.train`; `parent` is the MLflow run this one is nested under."""
    started = time.time()
    config = with_horizon(config)
    who = identity.capture()
    weights = _weights_of(source)
    wanted = name or runs.run_name(config, who.user) + (f"-from-{source}" if source else "")
    run = runs.create(runs.fresh_name(wanted) if new else wanted, config, who, parent=source)
    if run.record.status == "FINISHED" and run.result.exists():
        _settle(run)
        return read_result(run.result)
    with run.lease(), sigterm_raises():
        return _tracked(run, config, who, weights, progress, started, parent)


def _settle(run: Run) -> None:
    """Tell the tracking server what it was not told when the run finished."""
    from tokendial.tracking import unsettled

    uri = run.record.tracking_uri
    if uri is not None and unsettled(run.folder / "tracking"):
        from tokendial.tracking.finish import settle

        settle(uri, run.folder)


def with_horizon(config: RunConfig[Any]) -> RunConfig[Any]:
    """The configuration with the planned optimizer steps of its bound filled in."""
    cost = workload(config.workload).cost(config)
    try:
        steps = horizon(config, cost)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return config.model_copy(update={"budget": config.budget.model_copy(update={"horizon": steps})})


def _tracked(
    run: Run,
    config: RunConfig[Any],
    who: identity.Identity,
    weights: Path | None,
    progress: Progress,
    started: float,
    parent: str | None,
) -> RunResult:
    from tokendial.tracking import resolve_uri
    from tokendial.tracking.finish import finish
    from tokendial.tracking.opening import open_run
    from tokendial.tracking.server import TrackingUnavailable

    uri = resolve_uri(config.tracking.uri, runs.home())
    progress({"stage": "preparing"})
    environment.apply()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_digests, config)
        # Ray's processes end with the thread that starts them, so that must be the caller's.
        from tokendial.train import ray_trainer

        ray_trainer.connect()
        digests = reading.result()
    try:
        run_id = open_run(
            config, who, uri, run.folder, digests=digests, parent_run_id=parent, forked_from=run.record.parent
        )
    except TrackingUnavailable as error:
        raise WorkFailed(str(error)) from error
    run.update(status="RUNNING", run_id=run_id, tracking_uri=uri, error=None)
    status, failure = "FAILED", "it ended without a result"
    try:
        _train(run, config, uri, run_id, weights, progress)
        progress({"stage": "report"})
        result, figures, examples = conclude(run, config, digests, started)
        status, failure = "FINISHED", None
    except (KeyboardInterrupt, Terminated):
        status, failure = "KILLED", "it was stopped; the same command continues it"
        raise
    except WorkFailed as error:
        failure = str(error)
        raise
    finally:
        run.update(status=status, error=failure)
        if status != "FINISHED":
            partial = RunResult(run_id=run_id, name=run.name, status=status, error=failure, seed=config.seed)
            finish(uri, run.folder, partial)
    finish(uri, run.folder, result, figures=figures, examples=examples)
    return result


def _train(
    run: Run, config: RunConfig[Any], uri: str, run_id: str | None, weights: Path | None, progress: Progress
) -> None:
    progress({"stage": "starting workers"})
    from tokendial.train import ray_trainer
    from tokendial.train.worker import Order

    cpus = ray_trainer.cluster_cpus()
    if config.workers > cpus:
        raise ConfigError(f"workers {config.workers} is more than the {cpus} CPUs of the Ray cluster")
    order = Order(
        config=config.model_dump(mode="json"),
        folder=str(run.folder),
        horizon=config.budget.horizon or 0,
        weights=str(weights) if weights else None,
    )
    tracking = {"uri": uri, "run_id": run_id}
    ray_trainer.train(order, config.workers, config.max_failures, tracking, progress)


def _digests(config: RunConfig[Any]) -> Mapping[str, str]:
    """Digests of the data, read while Ray comes up."""
    try:
        data, _ = workload(config.workload).load(config)
        return data.digests(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def conclude(
    run: Run, config: RunConfig[Any], digests: Mapping[str, str], started: float
) -> tuple[RunResult, dict[str, Path], list[ExampleAnswers]]:
    """Curve, cards, figures and `result.json` of a run whose workers are done."""
    from tokendial.train.conclude import draw_figures, example_table

    chosen = workload(config.workload)
    scores = Scores.read(run.folder / "scores.json")
    curve = token_curve(scores.items)
    ledger = Ledger.from_json(json.loads((run.folder / "ledger.json").read_text("utf-8")))
    card = ModelCard(
        workload=config.workload,
        run=run.name,
        metric=chosen.metric,
        split=scores.split,
        trained_counts=config.schedule.counts,
        evaluated_counts=config.evaluation.counts,
        projector=config.model.projector,
        schedule=config.schedule.model_dump(mode="json"),
        commit=run.record.commit,
        autc=curve.autc,
        data_digests=dict(digests),
        config=config.model_dump(mode="json"),
        versions=versions(),
    )
    cost = chosen.cost(config)
    _, task = chosen.load(config)
    priced = {count: answer_flops(cost, count) for count in curve.points}
    quality = {count: point.quality for count, point in curve.points.items()}
    task.describe(str(run.model), config, quality, priced, digests, run.record.commit)
    write_cards(run.model, card, curve, priced)
    result = RunResult(
        run_id=run.record.run_id,
        name=run.name,
        status="FINISHED",
        autc=curve.autc,
        autc_ci=curve.autc_ci,
        curve=curve.points,
        groups=group_quality(scores.items),
        extras={name: dict(line) for name, line in scores.extras.items()},
        metric=chosen.metric,
        split=scores.split,
        workload=config.workload,
        experiment=config.experiment,
        schedule=config.schedule.preset,
        variant=runs.config_hash(config, without="seed"),
        trained_counts=config.schedule.counts,
        seed=config.seed,
        steps=ledger.steps,
        flops=ledger.total.flops,
        seconds=time.time() - started,
        ledger=ledger.to_json(),
        model_dir=str(run.model),
        commit=run.record.commit,
    )
    examples = example_table(run, config)
    figures = draw_figures(run, result, TokenSchedule(config.schedule), examples)
    result = result.model_copy(update={"figures": {name: str(path) for name, path in figures.items()}})
    write_result(run.result, result)
    return result, figures, examples


def _weights_of(source: str | None) -> Path | None:
    if source is None:
        return None
    found = newest(runs.find(source).checkpoints)
    if found is None or found.manifest.kind != "weights":
        raise ConfigError(f"run {source!r} has no finished weights to start from")
    return found.folder / WEIGHTS


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """End a run that is told to stop (as `ray job stop` does) through the same path as an interrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

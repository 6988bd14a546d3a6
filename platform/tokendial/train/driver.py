"""The driver of a run: name it, lease it, track it, have it trained and concluded."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokendial import environment, identity, runs
from tokendial.contracts import RunConfig
from tokendial.driver_log import driver_log
from tokendial.evaluate import placed
from tokendial.experiments import ConfigError, workload
from tokendial.failures import Terminated, WorkFailed
from tokendial.resolve import from_document
from tokendial.results import RunResult, write_result
from tokendial.runs import Run
from tokendial.train.checkpoint import WEIGHTS, newest
from tokendial.train.conclude import conclude
from tokendial.train.horizon import horizon, stage_plans
from tokendial.train.room import check_room, takes_gpus

Progress = Callable[[Mapping[str, Any]], None]


def train(
    config: RunConfig[Any],
    name: str | None,
    new: bool,
    source: str | None,
    progress: Progress,
    twin_of: str | None = None,
    stop: threading.Event | None = None,
) -> RunResult:
    """See `tokendial.api.train`; `twin_of` is the run this one is trained for, and `stop`, once set, ends it KILLED."""
    config = with_horizon(config)
    who = identity.capture()
    run, weights, parent = find_place(config, who.user, name, new, source)
    finished = run.result.exists() and run.record.status == "FINISHED"
    if finished and run.config_document()["data"]["path"] == config.data.path:
        settle(run)
        return run.read_result()
    progress({"stage": "preparing"})
    environment.apply()
    digests = data_digests(config)
    refuse_other_data(run, config, digests)
    if finished:
        settle(run)
        return run.read_result()
    _refuse_stage(run, config)
    run = runs.create(run.name, config, who, parent=parent, twin_of=twin_of)
    with run.lease(), sigterm_raises():
        run.configure(config)
        try:
            with driver_log(run.folder / "logs", progress) as logged:
                return _tracked(run, config, who, digests, weights, logged, stop or threading.Event())
        finally:
            if run.record.status == "RUNNING":
                run.update(status="FAILED", error="it ended without a result")


def find_place(
    config: RunConfig[Any], user: str, name: str | None, new: bool, source: str | None
) -> tuple[Run, Path | None, str | None]:
    """The run of a planned configuration, written or not; the weights that it starts from, and the run they are of.

    Raises ConfigError where it cannot be that run, or has no weights to start from.
    """
    weights, parent = _weights_of(source, config)
    wanted = name or runs.run_name(config, user) + (f"-from-{runs.short_name(parent)}" if parent else "")
    return runs.check(runs.fresh_name(wanted) if new else wanted, config, parent), weights, parent


def _refuse_stage(run: Run, config: RunConfig[Any]) -> None:
    """DeepSpeed's universal form of a checkpoint is of stages 1 to 3, so stage 0 stays stage 0."""
    before = run.config_document()["zero"]["stage"] if run.checkpoints.exists() else config.zero.stage
    if before == config.zero.stage or 0 not in (before, config.zero.stage):
        return
    found = newest(run.checkpoints)
    if found is not None and found.manifest.kind == "exact":
        raise ConfigError(
            f"run {run.name!r} stopped under zero.stage {before} and cannot go on under {config.zero.stage}: a "
            "checkpoint changes between stages 1, 2 and 3 only; go on under its own stage, or use --new"
        )


def refuse_other_data(run: Run, config: RunConfig[Any], digests: Mapping[str, str]) -> None:
    """A run's name does not say where its data lies, which may move; what the data is may not change."""
    told = run.folder / "tracking" / "opening.json"
    if not told.exists():
        return
    before = {entry["split"]: entry["digest"] for entry in json.loads(told.read_text("utf-8"))["datasets"]}
    if before != digests:
        paths = (path or "embedded" for path in (run.config_document()["data"]["path"], config.data.path))
        raise ConfigError(
            f"run {run.name!r} was trained on other data (data.path {' → '.join(paths)}); use --new or another --name"
        )


def settle(run: Run) -> bool:
    """Tell the tracking server what it was not told when the run ended; True where nothing is left to tell."""
    from tokendial.tracking import unsettled

    uri = run.record.tracking_uri
    if uri is None:
        return True
    if unsettled(run.folder / "tracking"):
        from tokendial.tracking import finish

        finish.settle(uri, run.folder)
    learn_id(run, uri)
    return not unsettled(run.folder / "tracking")


def learn_id(run: Run, uri: str) -> None:
    """Write down the MLflow id, which a server that was away when the run was opened gave later."""
    from tokendial.tracking import linked_id

    run_id = linked_id(uri, run.folder / "tracking")
    if run_id == run.record.run_id:
        return
    run.update(run_id=run_id)
    if run.result.exists():
        write_result(run.result, run.read_result().model_copy(update={"run_id": run_id}))


def with_horizon(config: RunConfig[Any]) -> RunConfig[Any]:
    """The configuration with the planned optimizer steps of its bound filled in."""
    cost = workload(config.workload).cost(config)
    try:
        steps = horizon(config, cost)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _refuse_untaught(config, steps)
    return config.model_copy(update={"budget": config.budget.model_copy(update={"horizon": steps})})


def _refuse_untaught(config: RunConfig[Any], steps: int) -> None:
    plans = stage_plans(config, steps)
    if not any(plan.stop > plan.start for plan in plans if plan.config.objective == "language"):
        stages = ", ".join(repr(plan.config.name) for plan in plans if plan.config.objective == "language")
        raise ConfigError(
            f"budget of {steps} steps leaves none to {stages}, so nothing would learn to answer; give more steps, or "
            "other shares of stages"
        )


def _tracked(
    run: Run,
    config: RunConfig[Any],
    who: identity.Identity,
    digests: Mapping[str, str],
    weights: Path | None,
    progress: Progress,
    stop: threading.Event,
) -> RunResult:
    from tokendial.tracking import linked_id, resolve_uri
    from tokendial.tracking.finish import finish, note, settle
    from tokendial.tracking.opening import open_run
    from tokendial.tracking.server import TrackingUnavailable
    from tokendial.train import ray_trainer

    uri = resolve_uri(config.tracking.uri, runs.home())
    told, status, failure = run.folder / "tracking", "FAILED", "it ended without a result"
    try:
        ray_trainer.connect()
        run_id = open_run(config, who, uri, run.folder, digests=digests, forked_from=run.record.parent)
        run.update(status="RUNNING", run_id=run_id or linked_id(uri, told), tracking_uri=uri, error=None)
        _train(run, config, uri, run_id, weights, progress, stop)
        progress({"stage": "report"})
        run.update(run_id=linked_id(uri, told))
        # Before the run counts as finished: whatever ends this process then, the same command tells the server.
        note(run.folder, *conclude(run, config, digests))
        status, failure = "FINISHED", None
    except (KeyboardInterrupt, Terminated):
        status, failure = "KILLED", "it was stopped; the same command continues it"
        raise
    except TrackingUnavailable as error:
        failure = str(error)
        raise WorkFailed(failure) from error
    except (WorkFailed, ConfigError, OSError, MemoryError) as error:
        failure = str(error)
        raise
    finally:
        run.update(status=status, error=failure)
        if status != "FINISHED" and (told / "opening.json").exists():
            run_id = linked_id(uri, told)
            partial = RunResult(run_id=run_id, name=run.name, status=status, error=failure, seed=config.seed)
            finish(uri, run.folder, partial)
            learn_id(run, uri)
    settle(uri, run.folder)
    learn_id(run, uri)
    return run.read_result()


def _train(
    run: Run,
    config: RunConfig[Any],
    uri: str,
    run_id: str | None,
    weights: Path | None,
    progress: Progress,
    stop: threading.Event,
) -> None:
    progress({"stage": "starting workers", "waits": True})
    from tokendial.train import ray_trainer
    from tokendial.train.worker import Order

    cluster = ray_trainer.cluster_room()
    check_room(config, cluster)
    order = Order(
        config=config.model_dump(mode="json"),
        folder=str(run.folder),
        horizon=config.budget.horizon or 0,
        weights=str(weights) if weights else None,
    )
    tracking = {"uri": uri, "run_id": run_id}
    use_gpu = takes_gpus(config, cluster)
    ray_trainer.train(order, config.workers, use_gpu, config.max_failures, tracking, progress, stop)


def data_digests(config: RunConfig[Any]) -> Mapping[str, str]:
    """Digests of the data; raises ConfigError where the data cannot be read."""
    try:
        data, _ = workload(config.workload).load(config)
        return data.digests(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"the data of {config.workload!r} cannot be read: {error}") from error


def _weights_of(source: str | None, config: RunConfig[Any]) -> tuple[Path | None, str | None]:
    """Weights to start from and the name of the run that they are of; raises ConfigError where they do not fit."""
    if source is None:
        return None, None
    run = runs.find(source)
    found = newest(run.checkpoints)
    if found is None or found.manifest.kind != "weights" or run.record.status != "FINISHED":
        raise ConfigError(f"run {run.name!r} has no finished weights to start from")
    theirs = _parameters(placed(from_document(run.config_document()), run.model))
    ours = _parameters(config)
    if theirs != ours:
        parts = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
        told = ", ".join(f"{name} {theirs.get(name, 0)} → {ours.get(name, 0)}" for name in parts)
        raise ConfigError(
            f"weights of run {run.name!r} do not fit this model (parameters: {told}); give the model settings that it "
            f"has, or take its tower and language model by model.init_from={run.model}"
        )
    return found.folder / WEIGHTS, run.name


def _parameters(config: RunConfig[Any]) -> Mapping[str, int]:
    return workload(config.workload).cost(config).num_parameters


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

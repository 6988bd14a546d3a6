"""What every training worker does: build, resume, run the stages, export, score. Ray starts it; nothing here is Ray."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tokendial import metrics
from tokendial.contracts.precision import on_device
from tokendial.ledger import Ledger
from tokendial.resolve import from_document
from tokendial.results import write_examples
from tokendial.runs import write_atomically
from tokendial.schedule.draw import mix64, stream_key
from tokendial.scores import Scores, examples_of, gather, grade
from tokendial.train import checkpoint as ck
from tokendial.train import engine as ds
from tokendial.train.examples import example_table
from tokendial.train.horizon import StagePlan, stage_plans
from tokendial.train.loop import Job, NonFinite, State, all_sum, make_job, run_stage, share_peaks
from tokendial.train.step import StepModule
from tokendial.versions import versions
from torch import nn

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MAX_SKIPPED = 3
# For waits on what one worker does alone: hashing, converting and exporting take long with a large model.
PATIENCE = timedelta(hours=2)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What the driver tells a worker. `weights`: a safetensors file to start from instead of fresh weights."""

    config: dict[str, Any]
    folder: str
    horizon: int
    weights: str | None = None


@dataclass(frozen=True)
class Seat:
    """Which worker this is, and how it reports: `log` metrics at a step (rank 0), `progress` for a person's eyes.

    `stepped` hears of every optimizer step on every rank, `committed` of every checkpoint on rank 0.
    `flush` returns once what was logged survives this process, which must be so before a checkpoint is committed.
    `patient` is the group in which workers wait for one another; gradients go through the default one.
    """

    rank: int
    world: int
    device: torch.device
    log: Callable[[int, Mapping[str, float]], None]
    progress: Callable[[Mapping[str, Any]], None]
    flush: Callable[[], None] = lambda: None
    stepped: Callable[[State], None] = lambda state: None
    committed: Callable[[int], None] = lambda step: None
    patient: dist.ProcessGroup | None = None


@dataclass
class Shelf:
    """Where checkpoints go, who commits them (rank 0), and up to when the time of the workers is in the ledger."""

    root: Path
    writer: ck.Writer | None
    entered: float = field(default_factory=time.perf_counter)


def work(order: Order, seat: Seat) -> None:
    """Train to the end of the budget from wherever the run's folder says it is, then export and score."""
    shelf = Shelf(Path(order.folder) / "checkpoints", None)
    shelf.root.mkdir(parents=True, exist_ok=True)
    config = from_document(order.config)
    if seat.world > 1:
        seat = replace(seat, patient=dist.new_group(backend="gloo", timeout=PATIENCE))
    job = make_job(config, order.horizon, seat.rank, seat.world, seat.device)
    if seat.rank == 0:
        shelf.writer = ck.Writer(shelf.root, config.checkpoint.keep, seat.committed)
    plans = stage_plans(config, order.horizon)
    skipped: set[int] = set()
    while True:
        try:
            _stages(job, order, seat, plans, shelf, skipped)
            break
        except NonFinite as error:
            skipped.add(error.index)
            if len(skipped) > MAX_SKIPPED:
                raise
            log.warning("%s; going back to the last checkpoint and past it", error)
            _settle(shelf, seat)
    if shelf.writer is not None:
        shelf.writer.close()
    _barrier(seat)
    finish(job, order, seat, shelf)


def _stages(
    job: Job, order: Order, seat: Seat, plans: tuple[StagePlan, ...], shelf: Shelf, skipped: set[int]
) -> None:
    """Every stage from the newest checkpoint on; each ends in a `weights` checkpoint that the next one starts from.

    `skipped` gains what the checkpoint has passed over, so that a restart does not begin to count anew.
    """
    found = _agreed(ck.newest(shelf.root) if seat.rank == 0 else None, seat)
    if found is not None:
        log.info("continuing from %s", found.folder.name)
    state = _state(job, found)
    skipped |= state.skipped
    state.skipped = set(skipped)
    start = 0 if found is None else found.manifest.stage
    weights = Path(order.weights) if order.weights else None
    exact = found if found and found.manifest.kind == "exact" else None
    if found is not None:
        weights = None if exact else found.folder / ck.WEIGHTS
    for number, plan in enumerate(plans[start:], start):
        engine = _engine(job, plan, weights)
        if exact is not None:
            _restore(engine, exact, job, seat)
            exact = None
        run_stage(job, engine, plan, state, _reporter(job, seat, engine, plan, number, plans[-1].stop, shelf))
        weights = _save_weights(job, seat, engine, state, number + 1, shelf)
        del engine


def _state(job: Job, found: ck.Checkpoint | None) -> State:
    """Where a checkpoint left the run; the price is today's."""
    price = job.config.tracking.price_per_hour
    if found is None:
        return State(ledger=Ledger(price_per_hour=price))
    manifest = found.manifest
    ledger = replace(Ledger.from_json(manifest.state["ledger"]), price_per_hour=price)
    return State(manifest.step, manifest.index, set(manifest.skipped), manifest.state["seconds"], ledger)


def _engine(job: Job, plan: StagePlan, weights: Path | None) -> DeepSpeedEngine:
    model = job.task.build_model(job.config)
    if weights is not None:
        model.load_state_dict(load_file(weights))
    torch.manual_seed(mix64(job.config.seed, stream_key("head")) >> 1)
    head = job.task.warmup_head(job.config) if plan.config.objective == "tower" else None
    # Left where it is: DeepSpeed moves it in the precision it trains in, which on a GPU is half of this one.
    module = StepModule(job.task, model, head, job.config.schedule.distil)
    module.train()
    return ds.start(module, job.task, job.config, plan.config, job.dtype)


def _reporter(
    job: Job,
    seat: Seat,
    engine: DeepSpeedEngine,
    plan: StagePlan,
    number: int,
    total: int,
    shelf: Shelf,
) -> Callable[[State, Mapping[str, float]], None]:
    every, validate = job.config.checkpoint.every, job.config.evaluation.every

    def after_step(state: State, measured: Mapping[str, float]) -> None:
        seat.stepped(state)
        if seat.rank == 0:
            seat.log(state.step, measured)
            shown = {name.removeprefix("train/"): value for name, value in measured.items()}
            seat.progress({"stage": plan.config.name, "step": state.step, "total": total, **shown})
        # Before the checkpoint, from which a run that is cut short goes on with the next step.
        if validate and state.step % validate == 0 and plan.config.objective == "language":
            _validate(job, seat, engine, state)
        if state.step % every == 0 and state.step < plan.stop:
            _save_exact(job, seat, engine, state, number, shelf)

    return after_step


def _manifest(job: Job, state: State, kind: str, stage: int) -> ck.Manifest:
    return ck.Manifest(
        kind="exact" if kind == "exact" else "weights",
        step=state.step,
        index=state.index,
        stage=stage,
        world=job.world,
        zero=job.config.zero.stage,
        schedule=job.schedule.hash,
        skipped=tuple(sorted(state.skipped)),
        state=state.document(),
        versions=versions(),
    )


def _save_exact(job: Job, seat: Seat, engine: DeepSpeedEngine, state: State, stage: int, shelf: Shelf) -> None:
    folder = _cleared(ck.folder_of(shelf.root, state.step, "exact"), shelf, seat)
    # DeepSpeed has the others wait in the default group for what rank 0 alone writes.
    default: Any = dist.group.WORLD
    with patient(default._get_backend(seat.device) if seat.world > 1 else None):
        ds.save(engine, folder, {"step": state.step})
    _barrier(seat)
    _enter(job, state.ledger, shelf)
    if shelf.writer is not None:
        seat.flush()
        shelf.writer.commit(folder, _manifest(job, state, "exact", stage))


def _save_weights(job: Job, seat: Seat, engine: DeepSpeedEngine, state: State, stage: int, shelf: Shelf) -> Path:
    weights = ds.full_state(engine)
    folder = _cleared(ck.folder_of(shelf.root, state.step, "weights"), shelf, seat)
    _enter(job, state.ledger, shelf)
    if shelf.writer is not None:
        folder.mkdir()
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / ck.WEIGHTS)
        seat.flush()
        shelf.writer.commit(folder, _manifest(job, state, "weights", stage))
        shelf.writer.wait()
    _barrier(seat)
    return folder / ck.WEIGHTS


def _cleared(folder: Path, shelf: Shelf, seat: Seat) -> Path:
    """A checkpoint's folder without what a killed worker left in it, once the commit before it is done."""
    if shelf.writer is not None:
        shelf.writer.wait()
        if folder.exists():
            shutil.rmtree(folder)
    _barrier(seat)
    return folder


def _enter(job: Job, ledger: Ledger, shelf: Shelf) -> None:
    """Bring the ledger up to this moment: what the workers were held for, and the largest memory of any of them."""
    now = time.perf_counter()
    ledger.hold(now - shelf.entered, job.world, job.world, job.world if job.device.type == "cuda" else 0)
    shelf.entered = now
    share_peaks(job, ledger)


def _restore(engine: DeepSpeedEngine, found: ck.Checkpoint, job: Job, seat: Seat) -> None:
    """Exact where world and stage are the same; else by way of DeepSpeed's universal form."""
    manifest, zero = found.manifest, job.config.zero.stage
    same = manifest.world == seat.world and manifest.zero == zero
    if not same and 0 in (manifest.zero, zero) and manifest.zero != zero:
        raise ValueError(f"zero.stage {manifest.zero} → {zero}: no checkpoint changes to or from stage 0; use --from")
    convert = not same and zero != 0
    if convert and seat.rank == 0 and not (found.folder / "universal").exists():
        ds.universal(found.folder)
    _barrier(seat)
    ds.restore(engine, found.folder, universal=convert)


def _validate(job: Job, seat: Seat, engine: DeepSpeedEngine, state: State) -> None:
    config = job.config
    examples = examples_of(job.data, config, "validation")
    model = ds.apart(engine, job.task, config, job.device, job.dtype)
    graded = grade(
        job.task, model, job.data, examples, config, config.evaluation.counts, job.device, job.dtype,
        (seat.rank, seat.world),
    )  # fmt: skip
    model.train()
    _barrier(seat)
    sums = all_sum([x for k in graded for x in (sum(g.quality for g in graded[k]), len(graded[k]))], job)
    if seat.rank == 0:
        quality = {k: sums[2 * i] / sums[2 * i + 1] for i, k in enumerate(graded)}
        seat.log(state.step, {metrics.validation_quality(k): value for k, value in quality.items()})


def finish(job: Job, order: Order, seat: Seat, shelf: Shelf) -> None:
    """Export the model, read it back as a user would, and score it at every count of the grid; enter all in the ledger.

    Where time was up before any step of language there is nothing to export, and the ledger says so.
    """
    folder = Path(order.folder)
    found = _agreed(ck.newest(shelf.root) if seat.rank == 0 else None, seat)
    assert found is not None, "training ended without a checkpoint"
    assert found.manifest.kind == "weights", "training ended without its weights"
    ledger = _state(job, found).ledger
    if ledger.trained_counts:
        _export(job, seat, found.folder / ck.WEIGHTS, folder, ledger.trained_counts)
    _enter(job, ledger, shelf)
    if seat.rank == 0:
        write_atomically(folder / "ledger.json", json.dumps(ledger.to_json()))
    _barrier(seat)


def _export(job: Job, seat: Seat, weights: Path, folder: Path, trained_counts: Sequence[int]) -> None:
    """The model of a run, its scores and its table of examples."""
    if seat.rank == 0:
        seat.progress({"stage": "export"})
        model = job.task.build_model(job.config)
        model.load_state_dict(load_file(weights))
        job.task.export(model, job.config, str(folder / "model"), trained_counts)
    _barrier(seat)
    model = on_device(job.task.load(str(folder / "model")), job.device, job.dtype)
    scores = score(job, seat, model, job.config.evaluation.split)
    if seat.rank == 0:
        assert scores is not None
        scores.write(folder / "scores.json")
        if table := example_table(job, model):
            (folder / "tracking").mkdir(exist_ok=True)
            write_examples(folder / "tracking" / "examples.json", table)


def score(job: Job, seat: Seat, model: nn.Module, split: str) -> Scores | None:
    """The split's scores at every count, on rank 0."""
    config = job.config
    chosen = examples_of(job.data, config, split)
    graded = grade(
        job.task, model, job.data, chosen, config, config.evaluation.counts, job.device, job.dtype,
        (seat.rank, seat.world), lambda done, total: seat.progress({"stage": "score", "step": done, "total": total}),
    )  # fmt: skip
    if seat.world == 1:
        return gather([graded], split, job.data.digests(config)[split])
    shares: list[Any] = [None] * seat.world
    dist.all_gather_object(shares, graded, seat.patient)
    return gather(shares, split, job.data.digests(config)[split]) if seat.rank == 0 else None


def _agreed(found: ck.Checkpoint | None, seat: Seat) -> ck.Checkpoint | None:
    """Rank 0's choice of checkpoint, on every rank."""
    if seat.world == 1:
        return found
    box = [found]
    dist.broadcast_object_list(box, 0, seat.patient)
    return box[0]


def _settle(shelf: Shelf, seat: Seat) -> None:
    if shelf.writer is not None:
        shelf.writer.wait()
    _barrier(seat)


@contextmanager
def patient(backend: Any) -> Iterator[None]:
    """Have a group of processes (its backend; None: there is no other) wait as long as for what one does alone."""
    if backend is None:
        yield
        return
    usual = backend.options._timeout
    backend._set_default_timeout(PATIENCE)
    try:
        yield
    finally:
        backend._set_default_timeout(usual)


def _barrier(seat: Seat) -> None:
    if seat.world > 1:
        dist.barrier(seat.patient)

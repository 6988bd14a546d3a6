"""The training loop of one stage, as it reads on paper: draw counts, run the passes, step, keep the books.

A global batch has accumulation × world × rows examples; rank r runs positions (micro · world + r) · rows onwards.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from tokendial import metrics
from tokendial.contracts import Batch, Cost, Data, Example, RunConfig, Task
from tokendial.experiments import workload
from tokendial.ledger import Ledger
from tokendial.schedule import Plan, TokenSchedule
from tokendial.schedule.draw import mix64, stream_key
from tokendial.train import engine as ds
from tokendial.train.horizon import Spent, StagePlan, executed, group_flops, language_span, stage_plans, step_cost
from tokendial.train.memory import peak_bytes, reset_peak
from tokendial.train.order import rank_batches
from tokendial.train.rate import rate
from tokendial.train.step import Work, move, ordered, works
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class NonFinite(ArithmeticError):
    """A loss or gradient that is not a number, on any rank: every rank raises it for the same global batch."""

    def __init__(self, index: int, what: str) -> None:
        # Its own arguments, so that it survives the way from a worker to the driver.
        super().__init__(index, what)
        self.index = index

    def __str__(self) -> str:
        return f"{self.args[1]} of global batch {self.index} is not finite"


@dataclass
class State:
    """How far a run is: optimizer steps done, next global batch, batches passed over, seconds trained, the ledger."""

    step: int = 0
    index: int = 0
    skipped: set[int] = field(default_factory=set)
    seconds: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)

    def document(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "ledger": self.ledger.to_json()}


@dataclass(frozen=True)
class Job:
    """What a worker trains with, fixed for the whole run; `span` is first step and length of the scheduled part."""

    config: RunConfig[Any]
    data: Data
    task: Task
    cost: Cost
    examples: Sequence[Example]
    schedule: TokenSchedule
    span: tuple[int, int]
    rank: int
    world: int
    device: torch.device
    dtype: torch.dtype


def make_job(config: RunConfig[Any], horizon: int, rank: int, world: int, device: torch.device) -> Job:
    """The job of one worker of a run of `horizon` steps, with its data and task loaded."""
    chosen = workload(config.workload)
    data, task = chosen.load(config)
    return Job(
        config=config,
        data=data,
        task=task,
        cost=chosen.cost(config),
        examples=data.datasets(config)["train"],
        schedule=TokenSchedule(config.schedule),
        span=language_span(stage_plans(config, horizon)),
        rank=rank,
        world=world,
        device=device,
        dtype=ds.precision(config, device),
    )


Report = Callable[[State, Mapping[str, float]], None]


def run_stage(job: Job, engine: DeepSpeedEngine, stage: StagePlan, state: State, after_step: Report) -> None:
    """Train from `state` to the end of the stage, or of the time budget; `after_step` reports and checkpoints."""
    batches = _batches(job, state, stage)
    while state.step < stage.stop and not out_of_time(job, state):
        began = time.perf_counter()
        reset_peak(job.device)
        _pass_over_skipped(state, batches, job.config.accumulation)
        plan = None
        if stage.config.objective == "language":
            first, length = job.span
            plan = job.schedule.draw(job.config.seed, state.index - first, job.config.global_batch, length)
        torch.manual_seed(mix64(job.config.seed, stream_key("dropout"), state.index, job.rank) >> 1)
        micro = [move(next(batches), job.device, job.dtype) for _ in range(job.config.accumulation)]
        targets, text = _agree(job, state, plan, micro)
        fraction = rate(job.config.optimizer, state.step - stage.start, stage.stop - stage.start)
        learning_rate = ds.set_rate(engine, fraction)
        loss, by_count, norm = _passes(job, engine, stage, state, plan, micro, targets)
        seconds = time.perf_counter() - began
        _account(job, stage, state, plan, text, seconds)
        state.step += 1
        state.index += 1
        after_step(state, _metrics(job, plan, loss, by_count, norm, learning_rate, seconds, text))


def out_of_time(job: Job, state: State) -> bool:
    """Whether the seconds bound is used up; `state.seconds` is rank 0's, so every rank answers alike."""
    bound = job.config.budget.seconds
    return bound is not None and state.seconds >= bound


def all_sum(values: Sequence[float], job: Job) -> list[float]:
    """Element-wise sum over ranks."""
    if job.world == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=job.device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def share_peaks(job: Job, ledger: Ledger) -> None:
    """Enter each count's largest memory of any worker into every worker's ledger (collective)."""
    if job.world == 1 or not ledger.counts:
        return
    tallies = [ledger.counts[count] for count in sorted(ledger.counts)]
    peaks = torch.tensor([tally.peak_bytes for tally in tallies], device=job.device)
    dist.all_reduce(peaks, dist.ReduceOp.MAX)
    for tally, peak in zip(tallies, peaks.tolist(), strict=True):
        tally.peak_bytes = peak


def _batches(job: Job, state: State, stage: StagePlan) -> Iterator[Batch]:
    """This rank's micro-batches from the next global batch on, read ahead by data workers where there are some."""
    config = job.config
    last = state.index + (stage.stop - state.step) + len(state.skipped) + 1
    indices = rank_batches(
        config.seed, len(job.examples), state.index, last, config.accumulation, config.rows, job.world, job.rank
    )
    loader = DataLoader(
        job.examples,  # pyright: ignore[reportArgumentType]
        batch_sampler=indices,  # pyright: ignore[reportArgumentType]
        collate_fn=job.data.collate,
        num_workers=config.data.num_workers,
    )
    return iter(loader)


def _pass_over_skipped(state: State, batches: Iterator[Batch], accumulation: int) -> None:
    while state.index in state.skipped:
        for _ in range(accumulation):
            next(batches)
        state.index += 1


def _agree(job: Job, state: State, plan: Plan | None, micro: Sequence[Batch]) -> tuple[int, list[int]]:
    """Answer tokens of the global batch and text tokens per group; raises where ranks drew different plans."""
    stamp = int(hashlib.blake2b(repr((state.step, state.index, plan)).encode(), digest_size=2).hexdigest(), 16)
    targets = sum(job.task.num_targets(batch) for batch in micro)
    total, stamps, squares, *text = all_sum([targets, stamp, stamp * stamp, *_text(job, plan, micro)], job)
    if squares * job.world != stamps * stamps:
        raise RuntimeError(f"ranks disagree on step {state.step}, batch {state.index}: their draws or data differ")
    return int(total), [int(value) for value in text]


def _text(job: Job, plan: Plan | None, micro: Sequence[Batch]) -> list[int]:
    """This rank's unpadded text tokens in each group of the plan."""
    lengths = {}
    for number, batch in enumerate(micro):
        first = _first(job, number)
        for row, length in enumerate((batch["attention_mask"].sum(dim=1) - 1).tolist()):
            lengths[first + row] = length
    if plan is None:
        return [sum(lengths.values())]
    return [sum(length for place, length in lengths.items() if place in group.positions) for group in plan.groups]


def _first(job: Job, micro: int) -> int:
    return (micro * job.world + job.rank) * job.config.rows


def _passes(
    job: Job,
    engine: DeepSpeedEngine,
    stage: StagePlan,
    state: State,
    plan: Plan | None,
    micro: Sequence[Batch],
    targets: int,
) -> tuple[float, dict[int, float], float]:
    """Forward, backward and the optimizer step; loss per answer token of the global batch, by count too where every
    example ran at each, and gradient norm."""
    counts = _shared(plan)
    total, parts = torch.zeros((), device=job.device), torch.zeros(len(counts), device=job.device)
    train_tower = "tower" in stage.config.train
    # DeepSpeed averages over ranks and passes; the loss is a sum over the global batch.
    scale = job.world * job.config.accumulation / targets
    for number, batch in enumerate(micro):
        loss, sums = engine(batch, _todo(job, plan, number), train_tower)
        engine.backward(loss * scale)
        total += torch.stack(sums).sum() / max(1, len(counts))
        if counts:
            parts += torch.stack(sums)
        if number < len(micro) - 1:
            engine.step()
    mean, *means = (value / targets for value in all_sum([total.item(), *parts.tolist()], job))
    if not math.isfinite(mean):
        raise NonFinite(state.index, "loss")
    norm = ds.step(engine)
    if not math.isfinite(norm):
        raise NonFinite(state.index, "gradient")
    return mean, dict(zip(counts, means, strict=True)), norm


def _todo(job: Job, plan: Plan | None, number: int) -> list[Work] | None:
    if plan is None:
        return None
    return works(plan, _first(job, number), job.config.rows, masked=job.config.schedule.mix == "sample")


def _shared(plan: Plan | None) -> list[int]:
    """The counts that every example runs at in the order of its passes; empty where each example runs at one."""
    if plan is None or plan.groups[0].positions != plan.groups[-1].positions:
        return []
    return [group.count for group in ordered(plan)]


def _account(
    job: Job, stage: StagePlan, state: State, plan: Plan | None, text: Sequence[int], seconds: float
) -> None:
    """Enter the step in the ledger; seconds go to counts in proportion to their FLOPs."""
    config, ledger = job.config, state.ledger
    if job.world > 1 and config.budget.seconds is not None:
        shared = torch.tensor([seconds], dtype=torch.float64, device=job.device)
        dist.broadcast(shared, 0)
        seconds = shared.item()
    state.seconds += seconds
    ledger.steps += 1
    ledger.wall_seconds += seconds
    peak = peak_bytes(job.device)
    spent = step_cost(config, job.cost, stage.config, plan)
    if plan is None:
        amounts = {"flops": spent.flops, "seconds": seconds, "examples": config.global_batch, "steps": 1}
        ledger.add(0, **amounts, peak_bytes=peak)
        return
    length = config.data.text_tokens
    taught = _account_teachers(job, stage, state, plan, text, seconds / spent.flops)
    own_flops = spent.flops - taught.flops
    parts = [group_flops(job.cost, stage.config, replace(group, teacher_count=None)) for group in plan.groups]
    masked = spent.tokens - taught.tokens - sum(len(g.positions) * (g.count + length) for g in plan.groups)
    passed = 0
    for group, own, words in zip(plan.groups, parts, text, strict=True):
        share, rows = own / sum(parts), len(group.positions)
        padding = masked - passed if group is plan.groups[-1] else round(masked * share)
        passed += padding
        ledger.add(
            group.count,
            visual_tokens=rows * group.count,
            text_tokens=words,
            pad_tokens=rows * length - words + padding,
            flops=own_flops * share,
            seconds=seconds * own_flops * share / spent.flops,
            examples=rows,
            steps=1,
            peak_bytes=peak,
        )


def _account_teachers(
    job: Job, stage: StagePlan, state: State, plan: Plan, text: Sequence[int], seconds_per_flop: float
) -> Spent:
    """Enter the passes that only teach at the teacher's count; their text is the step's, in proportion to rows."""
    rows_of: Counter[int] = Counter()
    for _, rows, teacher in executed(job.config, plan):
        if teacher is not None:
            rows_of[teacher] += rows
    trained, length = frozenset(stage.config.train), job.config.data.text_tokens
    total = Spent()
    for teacher, rows in rows_of.items():
        flops = rows * job.cost.language_flops(teacher, trained, backward=False)
        words = round(sum(text) * rows / sum(len(group.positions) for group in plan.groups))
        state.ledger.add(
            teacher,
            visual_tokens=rows * teacher,
            text_tokens=words,
            pad_tokens=rows * length - words,
            flops=flops,
            seconds=flops * seconds_per_flop,
        )
        total += Spent(flops, rows * (teacher + length))
    return total


def _metrics(
    job: Job,
    plan: Plan | None,
    loss: float,
    by_count: Mapping[int, float],
    norm: float,
    learning_rate: float,
    seconds: float,
    text: Sequence[int],
) -> dict[str, float]:
    found = {metrics.LOSS: loss, metrics.LEARNING_RATE: learning_rate, metrics.STEP_SECONDS: seconds}
    found[metrics.GRAD_NORM] = norm
    if plan is not None:
        visual = sum(len(group.positions) * group.count for group in plan.groups)
        found[metrics.TOKENS_PER_SECOND] = (visual + sum(text)) / seconds
        found[metrics.COUNT] = visual / sum(len(group.positions) for group in plan.groups)
        found |= {metrics.count_loss(count): value for count, value in by_count.items()}
    return found

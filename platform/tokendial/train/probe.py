"""Timing of a run's own passes on this machine, without Ray or DeepSpeed: what one worker computes, alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from statistics import median

import torch
from tokendial.contracts import Batch, Example
from tokendial.scores import grade
from tokendial.train.engine import freeze_all_but
from tokendial.train.horizon import StagePlan
from tokendial.train.loop import Job
from tokendial.train.step import StepModule, Work, move, works
from torch import nn

PROBE_PASSES = 12
Kind = tuple[tuple[int, tuple[int, ...] | None, int | None], ...]


def stage_seconds(job: Job, stage: StagePlan) -> float:
    """Seconds of the first worker's passes and optimizer steps in a stage, each different pass timed by itself."""
    steps = stage.stop - stage.start
    if not steps:
        return 0.0
    head = job.task.warmup_head(job.config) if stage.config.objective == "tower" else None
    module = StepModule(job.task, job.task.build_model(job.config), head, job.config.schedule.distil)
    module.to(job.device, job.dtype).train()
    freeze_all_but(module, job.task, stage.config)
    optimizer_seconds = _optimizer(job, [p for p in module.parameters() if p.requires_grad])
    counted, examples = _passes(job, stage)
    train_tower = "tower" in stage.config.train
    # The first pass and step of all also allocate what the others find.
    _pass_seconds(job, module, next(iter(examples.values())), train_tower)
    optimizer_seconds()
    repeats = max(1, PROBE_PASSES // len(counted))
    total = 0.0
    for kind, times in counted.items():
        total += times * median(_pass_seconds(job, module, examples[kind], train_tower) for _ in range(repeats))
    return total + steps * optimizer_seconds()


def scoring_seconds(job: Job, stages: Sequence[StagePlan], sets: Mapping[str, Sequence[Example]]) -> float:
    """Seconds of the first worker's share of the curves on the way and at the end, from one batch at every count."""
    config, settings = job.config, job.config.evaluation
    model = job.task.build_model(config).to(job.device, job.dtype)
    scored = sets[settings.split]
    batch = [scored[i] for i in range(min(settings.batch_size, len(scored)))]

    def once() -> float:
        began = time.perf_counter()
        grade(job.task, model, job.data, batch, config, settings.counts, job.device, job.dtype)
        _settle(job)
        return time.perf_counter() - began

    def rounds(split: str) -> int:
        wanted = settings.test_examples if split == "test" else settings.validation_examples
        return ceil(min(wanted, len(sets[split])) / settings.batch_size / job.world)

    on_the_way = sum(
        sum(step % settings.every == 0 for step in range(plan.start + 1, plan.stop + 1))
        for plan in stages
        if settings.every and plan.config.objective == "language"
    )
    # The first batch also allocates what the others find.
    once()
    return (rounds(settings.split) + on_the_way * rounds("validation")) * once()


def _passes(job: Job, stage: StagePlan) -> tuple[Counter[Kind], dict[Kind, list[Work] | None]]:
    """How often each different pass runs on the first worker in a stage, and one of each."""
    config, (first, span) = job.config, job.span
    if stage.config.objective == "tower":
        return Counter({(): (stage.stop - stage.start) * config.accumulation}), {(): None}
    counted: Counter[Kind] = Counter()
    examples: dict[Kind, list[Work] | None] = {}
    for step in range(stage.start, stage.stop):
        plan = job.schedule.draw(config.seed, step - first, config.global_batch, span)
        for micro in range(config.accumulation):
            todo = works(plan, micro * job.world * config.rows, config.rows, masked=config.schedule.mix == "sample")
            kind = _kind(todo)
            counted[kind] += 1
            examples.setdefault(kind, todo)
    return counted, examples


def _kind(todo: Sequence[Work]) -> Kind:
    return tuple((work.count, work.rows, work.teacher) for work in todo)


def _pass_seconds(job: Job, module: StepModule, todo: list[Work] | None, train_tower: bool) -> float:
    """Reading, forward and backward of one micro-batch."""
    began = time.perf_counter()
    batch: Batch = move(job.data.collate([job.examples[i] for i in range(job.config.rows)]), job.device, job.dtype)
    loss, _ = module(batch, todo, train_tower)
    loss.backward()
    _settle(job)
    return time.perf_counter() - began


def _optimizer(job: Job, trained: Sequence[nn.Parameter]) -> Callable[[], float]:
    """Takes and times an optimizer step. Weights in bf16 have fp32 copies for it, as DeepSpeed keeps them."""
    copies = [weight.detach().float() for weight in trained]
    optimizer = torch.optim.AdamW(copies, lr=0.0)

    @torch.no_grad()
    def once() -> float:
        began = time.perf_counter()
        for weight, copy in zip(trained, copies, strict=True):
            copy.grad = None if weight.grad is None else weight.grad.float()
        optimizer.step()
        if job.dtype is not torch.float32:
            for weight, copy in zip(trained, copies, strict=True):
                weight.copy_(copy)
        _settle(job)
        return time.perf_counter() - began

    return once


def _settle(job: Job) -> None:
    if job.device.type == "cuda":
        torch.cuda.synchronize(job.device)

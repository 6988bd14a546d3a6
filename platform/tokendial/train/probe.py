"""Timing of a run's own passes on this machine, without Ray or DeepSpeed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

import torch
from tokendial.contracts import Batch, StageConfig
from tokendial.train.engine import freeze_all_but
from tokendial.train.loop import Job
from tokendial.train.step import StepModule, Work, move


def seconds_per_step(job: Job, stage: StageConfig, passes: int) -> Mapping[int, float]:
    """Median seconds of one worker's share of an optimizer step at each count of the schedule (0: warm-up stage)."""
    config = job.config
    head = job.task.warmup_head(config) if stage.objective == "tower" else None
    module = StepModule(job.task, job.task.build_model(config), head, config.schedule.distil).to(job.device)
    module.train()
    freeze_all_but(module, job.task, stage)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0)
    counts = (0,) if stage.objective == "tower" else config.schedule.counts
    return {count: median(_timed(job, module, optimizer, stage, count) for _ in range(passes)) for count in counts}


def _timed(job: Job, module: StepModule, optimizer: torch.optim.Optimizer, stage: StageConfig, count: int) -> float:
    rows = job.config.rows
    began = time.perf_counter()
    for _ in range(job.config.accumulation):
        batch: Batch = move(job.data.collate([job.examples[i] for i in range(rows)]), job.device, job.dtype)
        loss, _ = module(batch, _works(job, count, rows), "tower" in stage.train)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - began


def _works(job: Job, count: int, rows: int) -> list[Work] | None:
    if count == 0:
        return None
    distil = job.config.schedule.distil
    teacher = None if distil is None else job.config.schedule.counts[-1] if distil.teacher == "max" else distil.teacher
    return [Work(count, None, (1.0,) * rows, None if teacher == count else teacher)]

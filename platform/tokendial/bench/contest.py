"""What each worker of a contest does: build the loops it is told of, let them take turns, and say what it measured."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from tokendial.bench.loops import Report, counts_of, ours, plain, trainer
from tokendial.bench.turns import Loop, take_turns
from tokendial.resolve import from_document
from tokendial.tracking.writer import MetricWriter
from tokendial.train.horizon import StagePlan, stage_plans, step_cost
from tokendial.train.loop import Job, make_job

GEMM_SIZE, GEMM_REPEATS = 1024, 15


def contest(
    order: Mapping[str, Any], rank: int, world: int, device: torch.device, progress: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Wall and CPU seconds, FLOPs and counts per step of every lane of `order`, and this worker's GEMM rate in FLOP/s.

    `order`: `lanes` (name → {kind: ours | plain | trainer, config}), `steps`, `folder`, and for the lane named
    `tracked` the MLflow `uri` and `run_id` that it logs to.
    """
    steps, folder = order["steps"], Path(order["folder"])
    configs = {name: from_document(lane["config"]) for name, lane in order["lanes"].items()}
    jobs = {name: make_job(config, steps, rank, world, device) for name, config in configs.items()}
    plans = {name: stage_plans(job.config, steps)[0] for name, job in jobs.items()}
    writer = MetricWriter(order["uri"], order["run_id"], folder / "tracking") if rank == 0 else None
    loops: dict[str, Loop] = {}
    for name, lane in order["lanes"].items():
        report = _report(writer, progress, steps) if name == order["tracked"] else _no_report
        loops[name] = _loop(lane["kind"], jobs[name], plans[name], report, str(folder / name))
    rates = [gemm_rate()]
    cpu_before = _tracking_cpu_s()
    took = take_turns(loops, steps, seed=0, meet=lambda: _meet(world))
    rates.append(gemm_rate())
    measured = {
        "seconds": {name: [step.wall_s for step in steps] for name, steps in took.items()},
        "cpu_seconds": {name: [step.cpu_s for step in steps] for name, steps in took.items()},
        "flops": {name: _flops(job, plans[name]) for name, job in jobs.items()},
        "counts": {name: counts_of(job, plans[name]) for name, job in jobs.items()},
        "gemm_flops_per_s": max(rates),
        "load": os.getloadavg()[0],
    }
    if writer is not None:
        measured["tracking_caller_s"] = writer.seconds_on_caller
        measured["tracking_threads_cpu_s"] = _tracking_cpu_s() - cpu_before
        writer.close()
    return measured


def _loop(kind: str, job: Job, plan: StagePlan, report: Report, folder: str) -> Loop:
    match kind:
        case "ours":
            return ours(job, plan, report)
        case "plain":
            return plain(job, plan)
        case "trainer":
            return trainer(job, plan, folder)
    raise ValueError(f"loop {kind!r} is none of ours, plain, trainer")


def _report(writer: MetricWriter | None, progress: Callable[[Mapping[str, Any]], None], steps: int) -> Report:
    """What a run's rank 0 does after each step: metrics to the writer, progress to the driver."""

    def report(step: int, measured: Mapping[str, float]) -> None:
        if writer is not None:
            writer.log(step, measured)
            shown = {name.removeprefix("train/"): value for name, value in measured.items()}
            progress({"stage": "all", "step": step, "total": steps, **shown})

    return report


def _no_report(step: int, measured: Mapping[str, float]) -> None:
    return


def _flops(job: Job, plan: StagePlan) -> list[float]:
    """One worker's share of every step's FLOPs."""
    first, length = job.span
    draws = (
        job.schedule.draw(job.config.seed, step - first, job.config.global_batch, length)
        for step in range(plan.start, plan.stop)
    )
    return [step_cost(job.config, job.cost, plan.config, draw).flops / job.world for draw in draws]


def gemm_rate() -> float:
    """FLOP/s of one fp32 product of 1,024² matrices in this process, by its fastest call."""
    left, right = torch.randn(GEMM_SIZE, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
    out, seconds = torch.empty_like(left), []
    for _ in range(GEMM_REPEATS):
        began = time.perf_counter()
        torch.mm(left, right, out=out)
        seconds.append(time.perf_counter() - began)
    return 2 * GEMM_SIZE**3 / min(seconds)


def _tracking_cpu_s() -> float:
    """CPU seconds that the metric writer's threads have used so far."""
    own = {thread.native_id for thread in threading.enumerate() if thread.name.startswith("tokendial-")}
    return sum(thread.user_time + thread.system_time for thread in psutil.Process().threads() if thread.id in own)


def _meet(world: int) -> None:
    if world > 1:
        dist.barrier()

"""What a run will do and cost before it starts: draws simulated, FLOPs added up, this machine timed by a probe."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import ceil
from typing import Any

from tokendial import machine
from tokendial.contracts import Cost, RunConfig
from tokendial.experiments import ConfigError, workload
from tokendial.schedule import TokenSchedule
from tokendial.sizing import state_bytes
from tokendial.train.driver import with_horizon
from tokendial.train.horizon import StagePlan, cut, language_span, run_cost, stage_plans
from tokendial.train.room import Room, takes_gpus

SECONDS_COVER = "one worker's data, passes and share of the scoring on this machine; not Ray's start, nor communication"


def forecast(config: RunConfig[Any]) -> dict[str, Any]:
    """Resolved configuration, data, FLOPs, tokens, memory and time of a run; time and memory need torch here.

    Of a run bounded by seconds it is what fits in them on this machine; where that is not timed, all of the horizon.
    """
    config = with_horizon(config)
    cost = workload(config.workload).cost(config)
    horizon = config.budget.horizon or 0
    steps, probed = _probe(config, cost) if find_spec("torch") is not None else (horizon, {})
    plans = stage_plans(config, horizon)
    spent = run_cost(config, cost, horizon, until=steps)
    return {
        "config": config.model_dump(mode="json"),
        "steps": steps,
        "stages": {plan.config.name: plan.stop - plan.start for plan in cut(plans, steps)},
        "parameters": dict(cost.num_parameters),
        "patches": cost.num_patches,
        "flops": spent.flops,
        "tokens": spent.tokens,
        "steps_per_count": _drawn(config, plans, steps),
        "state_bytes_per_worker": round(state_bytes(config, cost, config.workers, config.zero.stage, _bf16(config))),
        **probed,
    }


def _drawn(config: RunConfig[Any], plans: tuple[StagePlan, ...], steps: int) -> Mapping[str, int]:
    first, span = language_span(plans)
    schedule = TokenSchedule(config.schedule)
    drawn: dict[str, int] = {}
    for plan in cut(plans, steps):
        for step in range(plan.start, plan.stop) if plan.config.objective == "language" else ():
            for count in schedule.draw(config.seed, step - first, config.global_batch, span).counts:
                drawn[str(count)] = drawn.get(str(count), 0) + 1
    return dict(sorted(drawn.items(), key=lambda item: int(item[0])))


def _on_gpu(config: RunConfig[Any]) -> bool:
    """Whether a worker of the run trains on a GPU, by what this machine has."""
    return takes_gpus(config, Room(machine.cpus(), machine.gpus()))


def _bf16(config: RunConfig[Any]) -> bool:
    return config.precision == "bf16" or (config.precision == "auto" and _on_gpu(config))


def _probe(config: RunConfig[Any], cost: Cost) -> tuple[int, dict[str, Any]]:
    """Time real passes of the run's own model on this machine as the draws run them, and read the memory they took.

    Also the optimizer steps that its bound in seconds has room for.
    """
    import torch

    from tokendial.train.engine import precision
    from tokendial.train.loop import Job
    from tokendial.train.memory import free_bytes, peak_bytes
    from tokendial.train.probe import scoring_seconds, stage_seconds

    horizon, device = config.budget.horizon or 0, torch.device("cuda" if _on_gpu(config) else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        return horizon, _untimed("device is 'gpu', and this machine has none")
    try:
        dtype = precision(config, device)
    except ValueError as error:
        return horizon, _untimed(str(error))
    needed, free = state_bytes(config, cost, 1, 0, _bf16(config)), free_bytes(device)
    if needed > free / 2:
        return horizon, _untimed(
            f"the probe holds the whole model, {needed / 2**30:.1f} GiB with gradients and moments, and "
            f"{free / 2**30:.1f} GiB are free here"
        )
    began = time.perf_counter()
    try:
        data, task = workload(config.workload).load(config)
        sets = data.datasets(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    preparing = time.perf_counter() - began
    plans = stage_plans(config, horizon)
    job = Job(
        config, data, task, cost, sets["train"], TokenSchedule(config.schedule), language_span(plans), 0,
        config.workers, device, dtype,
    )  # fmt: skip
    steps, training = within(config.budget.seconds, plans, [stage_seconds(job, plan) for plan in plans])
    scoring = scoring_seconds(job, cut(plans, steps), sets)
    price, held = config.tracking.price_per_hour, preparing + training + scoring
    return steps, {
        "examples": {split: len(items) for split, items in sets.items()},
        "data_digests": dict(data.digests(config)),
        "seconds_preparing": round(preparing, 3),
        "seconds_training": round(training, 3),
        "seconds_scoring": round(scoring, 3),
        "cost": None if price is None else config.workers * held / 3600 * price,
        "seconds_cover": SECONDS_COVER,
        "peak_bytes_per_worker": peak_bytes(device),
        "probe_seconds": round(time.perf_counter() - began, 1),
    }


def _untimed(reason: str) -> dict[str, Any]:
    return {"seconds_training": None, "seconds_cover": f"not timed: {reason}"}


def within(bound: float | None, plans: Sequence[StagePlan], seconds: Sequence[float]) -> tuple[int, float]:
    """Optimizer steps that begin within a bound on seconds, and their seconds, given those of each whole stage."""
    spent = 0.0
    for plan, whole in zip(plans, seconds, strict=True):
        if bound is not None and spent + whole > bound:
            return plan.start + ceil((bound - spent) / whole * (plan.stop - plan.start)), bound
        spent += whole
    return plans[-1].stop, spent

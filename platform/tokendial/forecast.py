"""What a run will do and cost before it starts: draws simulated, FLOPs added up, this machine timed by a probe."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from tokendial.contracts import Cost, RunConfig
from tokendial.experiments import ConfigError, workload
from tokendial.schedule import TokenSchedule
from tokendial.train.driver import with_horizon
from tokendial.train.horizon import language_span, run_cost, stage_plans

BYTES_PER_PARAMETER = 16  # fp32 weight, gradient and two moments
SECONDS_COVER = "one worker's data, passes and share of the scoring on this machine; not Ray's start, nor communication"


def forecast(config: RunConfig[Any]) -> dict[str, Any]:
    """Resolved configuration, data, FLOPs, tokens, memory and time of a run; time and memory need torch here."""
    config = with_horizon(config)
    chosen = workload(config.workload)
    cost = chosen.cost(config)
    steps = config.budget.horizon or 0
    spent = run_cost(config, cost, steps)
    found: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "steps": steps,
        "stages": {plan.config.name: plan.stop - plan.start for plan in stage_plans(config, steps)},
        "parameters": dict(cost.num_parameters),
        "patches": cost.num_patches,
        "flops": spent.flops,
        "tokens": spent.tokens,
        "steps_per_count": _drawn(config, steps),
        "state_bytes_per_worker": _state_bytes(config, cost),
    }
    if find_spec("torch") is not None:
        found |= _probe(config, cost)
    return found


def _drawn(config: RunConfig[Any], steps: int) -> Mapping[str, int]:
    _, span = language_span(stage_plans(config, steps))
    schedule = TokenSchedule(config.schedule)
    drawn: dict[str, int] = {}
    for step in range(span):
        for count in schedule.draw(config.seed, step, config.global_batch, span).counts:
            drawn[str(count)] = drawn.get(str(count), 0) + 1
    return dict(sorted(drawn.items(), key=lambda item: int(item[0])))


def _state_bytes(config: RunConfig[Any], cost: Cost) -> int:
    """Weights, gradients and moments a worker holds, divided as the ZeRO stage divides them."""
    parameters, workers = sum(cost.num_parameters.values()), config.workers
    shared = {0: 0, 1: 8, 2: 12, 3: 16}[config.zero.stage]
    return round(parameters * (BYTES_PER_PARAMETER - shared + shared / workers))


def _probe(config: RunConfig[Any], cost: Cost) -> dict[str, Any]:
    """Time real passes of the run's own model on this machine as the draws run them, and read the memory they took."""
    import torch

    from tokendial.train.loop import Job
    from tokendial.train.memory import free_bytes, peak_bytes
    from tokendial.train.probe import scoring_seconds, stage_seconds

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    needed, free = BYTES_PER_PARAMETER * sum(cost.num_parameters.values()), free_bytes(device)
    if needed > free / 2:
        return {
            "seconds_training": None,
            "seconds_cover": f"not timed: the probe holds the whole model, {needed / 2**30:.1f} GiB with gradients "
            f"and moments, and {free / 2**30:.1f} GiB are free here",
        }
    began = time.perf_counter()
    try:
        data, task = workload(config.workload).load(config)
        sets = data.datasets(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    preparing = time.perf_counter() - began
    plans = stage_plans(config, config.budget.horizon or 0)
    job = Job(
        config, data, task, cost, sets["train"], TokenSchedule(config.schedule), language_span(plans), 0,
        config.workers, device, torch.float32,
    )  # fmt: skip
    training = sum(stage_seconds(job, plan) for plan in plans)
    scoring = scoring_seconds(job, plans, sets[config.evaluation.split])
    price, held = config.tracking.price_per_hour, preparing + training + scoring
    return {
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

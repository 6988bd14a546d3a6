"""What a search may spend, as FLOPs for each trial: every trial of a search gets the same, whatever its schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokendial.contracts import BudgetConfig, Cost, RunConfig
from tokendial.experiments import ConfigError, workload
from tokendial.schedule import TokenSchedule
from tokendial.train.driver import with_horizon
from tokendial.train.horizon import CachedCost, language_span, run_cost, stage_plans, step_cost

# Starting workers, exporting, scoring and recording of one trial on a machine of the size that the demo is made for.
START_S = 25.0
SECONDS = {"s": 1, "min": 60, "h": 3600}
HOURS = {"gpuh": 3600, "cpuh": 3600}
_TEXT = re.compile(r"(\d+(?:\.\d+)?(?:[eE]\+?\d+)?)\s*([a-z]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """An amount in FLOPs, wall seconds of the search, or seconds of a worker (`gpuh`, `cpuh`)."""

    amount: float
    kind: str
    per_trial: bool


def parse(text: str, per_trial: bool) -> Budget:
    """`2e13` (FLOPs), `30min`, `2h`, `90s`, `1.5gpuh`; raises ConfigError."""
    found = _TEXT.fullmatch(text.strip())
    unit = found[2].lower() if found else ""
    kinds = {**dict.fromkeys(SECONDS, "seconds"), **dict.fromkeys(HOURS, "worker_seconds"), "flops": "flops"}
    if found is None or unit not in ("", *kinds) or not 0 < float(found[1]) < math.inf:
        raise ConfigError(f"--budget {text!r} is not an amount such as 2e13 (FLOPs), 30min, 2h, 90s or 1.5gpuh")
    scale = {**SECONDS, **HOURS}.get(unit, 1)
    return Budget(float(found[1]) * scale, kinds.get(unit, "flops"), per_trial)


def flops_per_trial(
    budget: Budget | None,
    config: RunConfig[Any],
    trials: int,
    slots: Callable[[RunConfig[Any]], int],
    speed: Callable[[RunConfig[Any]], float],
) -> float:
    """FLOPs of one trial of `config` (its tower already warm); None: what the experiment itself would spend from there.

    `slots` gives how many trials run at once and `speed` the FLOPs a second of one; both are only asked where the
    budget is time.

    Raises ConfigError where a time is too short to start a trial in.
    """
    if budget is None:
        return own_flops(config)
    if budget.kind == "flops":
        return budget.amount if budget.per_trial else budget.amount / trials
    seconds = budget.amount / (config.workers if budget.kind == "worker_seconds" else 1)
    if not budget.per_trial:
        # Wall time ends with the fullest slot, which works one trial off after the other.
        seconds /= math.ceil(trials / slots(config)) if budget.kind == "seconds" else trials
    if seconds <= START_S:
        raise ConfigError(
            f"--budget leaves {seconds:.0f} s for a trial, and starting and scoring one takes about {START_S:.0f} s; "
            "give more, or fewer --trials"
        )
    return float(f"{(seconds - START_S) * speed(config):.3g}")


def own_flops(config: RunConfig[Any]) -> float:
    """FLOPs of a configuration under its own bound."""
    config = with_horizon(config)
    return run_cost(config, workload(config.workload).cost(config), config.budget.horizon or 0).flops


def measured_speed(config: RunConfig[Any]) -> float:
    """FLOPs a second of a run on this machine, by a probe of its own passes."""
    from tokendial.forecast import forecast

    found = forecast(config)
    if found["seconds_training"] is None:
        raise ConfigError(f"--budget in time needs a run's speed here, {found['seconds_cover']}; give it in FLOPs")
    return found["flops"] / max(found["seconds_training"], 0.1)


def spent_after(config: RunConfig[Any], cost: Cost) -> list[float]:
    """FLOPs spent after 0, 1, 2, … optimizer steps of a planned run."""
    schedule, cost, steps = TokenSchedule(config.schedule), CachedCost(cost), config.budget.horizon or 0
    plans = stage_plans(config, steps)
    first, span = language_span(plans)
    spent = [0.0]
    for stage in plans:
        for step in range(stage.start, stage.stop):
            drawn = stage.config.objective == "language"
            plan = schedule.draw(config.seed, step - first, config.global_batch, span) if drawn else None
            spent.append(spent[-1] + step_cost(config, cost, stage.config, plan).flops)
    return spent


def with_flops(config: RunConfig[Any], flops: float) -> RunConfig[Any]:
    """The configuration bound by FLOPs, its horizon planned; raises ConfigError where they pay for no step."""
    return with_horizon(config.model_copy(update={"budget": BudgetConfig(flops=flops)}))

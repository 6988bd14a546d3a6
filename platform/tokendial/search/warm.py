"""The warmed tower that trials share: one run of the tower's stages alone, whose weights every trial starts from.

Configurations that would warm the same tower (same seed, model, data and optimizer) share one run.
"""

from __future__ import annotations

from typing import Any

from tokendial import runs
from tokendial.contracts import BudgetConfig, RunConfig, StageConfig
from tokendial.schedule import preset
from tokendial.train.driver import with_horizon
from tokendial.train.horizon import stage_plans

# A run ends in a language stage; one step at no rate to speak of leaves the weights as the tower's stages left them.
LAST = StageConfig(name="hand_over", share=1.0, train=("projector",), lr_factor=1e-9)


def tower_steps(config: RunConfig[Any]) -> int:
    """Optimizer steps of the stages that warm the tower before anything else; 0 where there are none."""
    config = with_horizon(config)
    steps = 0
    for plan in stage_plans(config, config.budget.horizon or 0):
        if plan.config.objective != "tower":
            break
        steps = plan.stop
    return steps


def without_tower(config: RunConfig[Any]) -> RunConfig[Any]:
    """The configuration from where its tower is warm: the later stages, over the steps that they had."""
    steps = tower_steps(config)
    if not steps:
        return config
    whole = with_horizon(config).budget.horizon or 0
    later = tuple(stage for stage in config.stages if stage.objective != "tower")
    return config.model_copy(update={"stages": later, "budget": BudgetConfig(steps=whole - steps)})


def tower_config(config: RunConfig[Any]) -> RunConfig[Any] | None:
    """The run that warms the tower of a configuration; None where it has no stage for that."""
    steps = tower_steps(config)
    if not steps:
        return None
    early = tuple(stage for stage in config.stages if stage.objective == "tower")
    total = sum(stage.share for stage in early)
    scaled = tuple(stage.model_copy(update={"share": stage.share / total * steps}) for stage in early)
    smallest = config.evaluation.counts[:1]
    evaluation = config.evaluation.model_copy(
        update={"counts": smallest, "split": "validation", "validation_examples": 1, "every": 0, "table_examples": 0}
    )
    optimizer = config.optimizer.model_copy(update={"projector_lr_factor": 1.0})
    return config.model_copy(
        update={
            "description": "the tower that the trials of a search start from",
            "stages": (*scaled, LAST),
            "schedule": preset("fixed", smallest),
            "budget": BudgetConfig(steps=steps + 1),
            "evaluation": evaluation,
            "optimizer": optimizer,
        }
    )


def tower_name(search: str, config: RunConfig[Any]) -> str:
    """Name of the warm run in the run store: trials whose towers are alike find the same one."""
    return f"{search}.tower-{runs.config_hash(config)}"

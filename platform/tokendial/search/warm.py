"""The warmed tower that trials share: one run of the tower's stages alone, whose weights every trial starts from.

Configurations that would warm the same tower (same seed, model, data and optimizer) share one run.
"""

from __future__ import annotations

from itertools import dropwhile
from typing import Any

from tokendial import runs
from tokendial.contracts import BudgetConfig, RunConfig, StageConfig
from tokendial.schedule import preset
from tokendial.train.horizon import stage_plans

# A run ends in a language stage; one step at no rate to speak of leaves the weights as the tower's stages left them.
LAST = StageConfig(name="hand_over", share=1.0, train=("projector",), lr_factor=1e-9)


def tower_steps(config: RunConfig[Any], horizon: int) -> int:
    """Optimizer steps, of `horizon`, of the stages that warm the tower before anything else; 0 where there are none."""
    first, _ = _parted(config)
    return stage_plans(config, horizon)[len(first) - 1].stop if first else 0


def _parted(config: RunConfig[Any]) -> tuple[tuple[StageConfig, ...], tuple[StageConfig, ...]]:
    """The stages that warm the tower before anything else, and those from there on, which may warm it again."""
    later = tuple(dropwhile(lambda stage: stage.objective == "tower", config.stages))
    return config.stages[: len(config.stages) - len(later)], later


def without_tower(config: RunConfig[Any]) -> RunConfig[Any]:
    """The configuration from where its tower is warm, under the bound of the whole."""
    return config.model_copy(update={"stages": _parted(config)[1]})


def tower_config(config: RunConfig[Any], steps: int) -> RunConfig[Any]:
    """The run that warms the tower of a configuration over `steps`."""
    first, _ = _parted(config)
    total = sum(stage.share for stage in first)
    scaled = tuple(stage.model_copy(update={"share": stage.share / total * steps}) for stage in first)
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

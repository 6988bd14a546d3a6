"""What twins share with the flexible run of their seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokendial import api, runs
from tokendial.contracts import BudgetConfig, RunConfig
from tokendial.experiments import ConfigError, workload
from tokendial.identity import Identity
from tokendial.resolve import resolve
from tokendial.results import RunResult, write_result
from tokendial.train.driver import with_horizon
from tokendial.train.horizon import run_cost
from tokendial.twins import twin_budget


def flexible(*overrides: str) -> tuple[RunConfig[Any], RunResult]:
    config = with_horizon(resolve("digits.tiny", overrides, machine_cpus=None))
    return config, RunResult(run_id=None, name="it", status="FINISHED", steps=config.budget.horizon or 0, flops=5e9)


def test_twins_of_another_seed_take_what_its_own_flexible_run_takes() -> None:
    base, result = flexible("budget.flops=4e10", "seed=0")
    other = with_horizon(base.model_copy(update={"seed": 3}))
    steps = other.budget.horizon or 0
    assert steps != result.steps
    assert twin_budget(base, 0, "steps", result) == BudgetConfig(steps=result.steps)
    assert twin_budget(base, 0, "flops", result) == BudgetConfig(flops=result.flops)
    assert twin_budget(base, 3, "steps", result) == BudgetConfig(steps=steps)
    spent = run_cost(other, workload("digits").cost(other), steps).flops
    assert twin_budget(base, 3, "flops", result) == BudgetConfig(flops=spent)


def test_twins_of_a_run_of_so_many_steps_take_those_whatever_their_seed() -> None:
    base, result = flexible("budget.steps=40")
    assert {twin_budget(base, seed, "steps", result).steps for seed in (0, 1, 2)} == {40}


@pytest.mark.parametrize("kind", ["steps", "flops"])
def test_a_run_that_its_seconds_may_have_ended_has_no_twins(kind: str, home: Path) -> None:
    config, result = flexible("budget.seconds=600", "budget.horizon=100000")
    run = runs.create("it", config, Identity(user="ada"))
    write_result(run.result, result)
    with pytest.raises(ConfigError, match=r"run 'it' is bounded by budget.seconds 600, .* budget.steps or budget"):
        api.twins("it", kind, (0,))
    assert [path.name for path in home.iterdir()] == ["it"]

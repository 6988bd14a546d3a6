"""Stages, horizons and prices of steps, with a cost model whose answers are easy to add up."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
from tokendial.contracts import (
    BudgetConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    StageConfig,
)
from tokendial.schedule import TokenSchedule, preset
from tokendial.train.horizon import horizon, language_span, run_cost, stage_plans, step_cost
from tokendial.train.rate import rate


class UnitCost:
    """Tower 100 forward and 200 more backward; language model k forward and 2k more backward; warm-up 50."""

    num_patches = 144
    num_parameters: Mapping[str, int] = {"tower": 1}

    def tower_flops(self, trained: bool) -> float:
        return 300.0 if trained else 100.0

    def language_flops(self, k: int, trained: frozenset[str], backward: bool = True) -> float:
        del trained
        return 3.0 * k if backward else float(k)

    def warmup_flops(self) -> float:
        return 50.0


def config(name: str = "tokenflex", stages: tuple[StageConfig, ...] = (), **changes: object) -> RunConfig[DataConfig]:
    fields = {
        "experiment": "e",
        "workload": "w",
        "global_batch": 8,
        "model": ModelConfig(),
        "schedule": preset(name, (4, 16, 144)),
        "data": DataConfig(text_tokens=10),
        "budget": BudgetConfig(steps=100),
        "evaluation": EvaluationConfig(counts=(4, 16)),
        **({"stages": stages} if stages else {}),
        **changes,
    }
    return RunConfig[DataConfig].model_validate(fields)


def test_stages_take_their_shares_and_meet() -> None:
    stages = (StageConfig(name="warm", share=1, objective="tower", train=("tower",)), StageConfig(name="all", share=3))
    plans = stage_plans(config(stages=stages), 103)
    assert [(plan.start, plan.stop) for plan in plans] == [(0, 26), (26, 103)]
    assert language_span(plans) == (26, 77)


def test_a_step_costs_tower_once_and_language_per_count() -> None:
    stage = StageConfig(name="all", share=1)
    flexible, everything = config(), config("m3")
    plan = TokenSchedule(flexible.schedule).draw(0, 0, 8, 100)
    count = plan.groups[0].count
    assert step_cost(flexible, UnitCost(), stage, plan).flops == 8 * (300 + 3 * count)
    assert step_cost(flexible, UnitCost(), stage, plan).tokens == 8 * (count + 10)
    plan = TokenSchedule(everything.schedule).draw(0, 0, 8, 100)
    assert step_cost(everything, UnitCost(), stage, plan).flops == 8 * (300 + 3 * (4 + 16 + 144))


def test_a_teacher_costs_a_forward_pass_unless_it_runs_anyway() -> None:
    stage = StageConfig(name="all", share=1)
    alone, beside = config("flexivit"), config("sandwich")
    draws = (TokenSchedule(alone.schedule).draw(0, step, 8, 100) for step in range(100))
    plan = next(plan for plan in draws if plan.groups[0].count == 4)
    assert step_cost(alone, UnitCost(), stage, plan).flops == 8 * (300 + 3 * 4 + 144)
    plan = TokenSchedule(beside.schedule).draw(0, 0, 8, 100)
    assert step_cost(beside, UnitCost(), stage, plan).flops == 8 * (300 + 3 * (4 + 16 + 144))


def test_a_teacher_of_other_examples_is_a_pass_of_its_own() -> None:
    schedule = {"counts": (4, 16, 144), "weights": (1, 1, 2), "mix": "stratified", "stratum": 2, "distil": {}}
    chosen = config(schedule=schedule, micro_batch=2)
    plan = TokenSchedule(chosen.schedule).draw(0, 0, 8, 100)
    spent = step_cost(chosen, UnitCost(), StageConfig(name="all", share=1), plan)
    assert spent.flops == 8 * 300 + 2 * (3 * 4 + 144) + 2 * (3 * 16 + 144) + 4 * 3 * 144
    assert spent.tokens == 2 * (4 + 144 + 20) + 2 * (16 + 144 + 20) + 4 * (144 + 10)


def test_counts_of_the_same_examples_share_one_pass_of_their_teacher() -> None:
    schedule = {"counts": (4, 16, 144), "weights": (0, 1, 0), "mix": "smallest", "distil": {}}
    chosen = config(schedule=schedule)
    plan = TokenSchedule(chosen.schedule).draw(0, 0, 8, 100)
    assert plan.counts == (4, 16)
    spent = step_cost(chosen, UnitCost(), StageConfig(name="all", share=1), plan)
    assert spent.flops == 8 * (300 + 3 * 4 + 3 * 16 + 144)


def test_per_example_counts_are_priced_at_the_padded_length() -> None:
    chosen = config("flextok", micro_batch=2)
    plan = TokenSchedule(chosen.schedule).draw(0, 3, 8, 100)
    at = {position: group.count for group in plan.groups for position in group.positions}
    passes = [max(at[p], at[p + 1]) for p in range(0, 8, 2)]
    spent = step_cost(chosen, UnitCost(), StageConfig(name="all", share=1), plan)
    assert spent.flops == 8 * 300 + sum(2 * 3 * count for count in passes)


def test_a_teacher_of_per_example_counts_is_a_pass_of_its_own_even_at_the_padded_count() -> None:
    distil = {"teacher": "max"}
    schedule = {"counts": (4, 16, 144), "weights": (1, 1, 1), "mix": "sample", "distil": distil}
    chosen = config(schedule=schedule, micro_batch=8)
    plan = TokenSchedule(chosen.schedule).draw(0, 0, 8, 100)
    assert plan.counts == (4, 16, 144)
    spent = step_cost(chosen, UnitCost(), StageConfig(name="all", share=1), plan)
    assert spent.flops == 8 * (300 + 3 * 144 + 144)


@pytest.mark.parametrize("name", ["tokenflex", "curriculum", "sandwich"])
def test_a_flop_bound_gives_the_most_steps_that_fit(name: str) -> None:
    bound = 1e6
    bounded = config(name, budget=BudgetConfig(flops=bound))
    steps = horizon(bounded, UnitCost())
    assert run_cost(bounded, UnitCost(), steps).flops <= bound < run_cost(bounded, UnitCost(), steps + 1).flops


def test_a_bound_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="less than one step costs"):
        horizon(config(budget=BudgetConfig(flops=10)), UnitCost())


@pytest.mark.parametrize("budget", [{"flops": 1e6}, {"tokens": 20_000}, {"steps": 7}], ids=str)
def test_a_horizon_that_came_along_is_computed_again(budget: dict[str, float]) -> None:
    fresh = horizon(config(budget=BudgetConfig.model_validate(budget)), UnitCost())
    assert horizon(config(budget=BudgetConfig.model_validate({**budget, "horizon": 3})), UnitCost()) == fresh != 3


def test_a_time_bound_keeps_its_horizon() -> None:
    assert horizon(config(budget=BudgetConfig(seconds=5, horizon=40)), UnitCost()) == 40


def test_prices_are_worked_out_once_for_all_probes() -> None:
    class Counting(UnitCost):
        asked = 0

        def language_flops(self, k: int, trained: frozenset[str], backward: bool = True) -> float:
            self.asked += 1
            return super().language_flops(k, trained, backward)

    cost = Counting()
    horizon(config("flexivit", budget=BudgetConfig(flops=1e7)), cost)
    assert cost.asked <= 2 * 3


@pytest.mark.parametrize("shape", ["one_cycle", "cosine", "constant"])
def test_rates_rise_to_the_peak_and_fall_to_the_floor(shape: str) -> None:
    floor = 0.0 if shape == "constant" else 0.1
    chosen = OptimizerConfig.model_validate({"shape": shape, "warmup": 0.2, "floor": floor})
    rates = [rate(chosen, step, 100) for step in range(100)]
    assert all(later >= earlier for earlier, later in pairwise(rates[:21]))
    assert rates[20] == pytest.approx(1.0, abs=1e-3)
    assert max(rates) <= 1
    assert rates[-1] == pytest.approx(1.0 if shape == "constant" else 0.1, abs=1e-2)

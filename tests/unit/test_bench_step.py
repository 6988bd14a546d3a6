"""From measured steps to rows: ratios of paired steps, the saving realised, and experiments that cannot be measured."""

from typing import Any

import pytest
from tokendial.bench import step
from tokendial.bench.records import Row
from tokendial.experiments import ConfigError

COUNTS = (256, 16, 64, 256, 256, 64, 16, 256)
FLOPS = {16: 20.0, 64: 40.0, 256: 100.0}


def measured(seconds_of: dict[int, float]) -> list[dict[str, Any]]:
    """Five steps of warm-up that must not count, then one step at each of COUNTS beside one at 256."""
    counts = [16] * step.WARM_STEPS + list(COUNTS)
    mixed = [99.0] * step.WARM_STEPS + [seconds_of[count] for count in COUNTS]
    return [
        {
            "seconds": {"mixed": mixed, "always-max": [seconds_of[256]] * len(counts)},
            "counts": {"mixed": counts, "always-max": [256] * len(counts)},
            "flops": {"mixed": [FLOPS[k] for k in counts], "always-max": [FLOPS[256]] * len(counts)},
            "gemm_flops_per_s": 50.0,
        }
    ]


def rows_of(seconds_of: dict[int, float]) -> dict[str, Row]:
    return {row.name: row for row in step._saving(measured(seconds_of), "digits")}


def test_time_that_follows_flops_realises_the_whole_saving() -> None:
    rows = rows_of({count: flops / 25 for count, flops in FLOPS.items()})
    assert rows["saving realised, 2:3:5 law"].value == pytest.approx(1.0)
    assert rows["saving realised, 2:3:5 law"].num_samples == len(COUNTS)
    assert rows["FLOPs, mixed ÷ always-max"].value == pytest.approx(0.65)
    assert rows["step time, mixed ÷ always-max"].value == pytest.approx(0.65)
    assert rows["step at always-max"].floor_s == pytest.approx(2.0)


def test_a_loop_that_pads_every_step_realises_nothing() -> None:
    rows = rows_of(dict.fromkeys(FLOPS, 4.0))
    saving = rows["saving realised, 2:3:5 law"]
    assert saving.value == pytest.approx(0.0, abs=1e-9)
    assert saving.met is False


def test_the_slowest_rank_counts() -> None:
    ranks = [{"seconds": {"plain": [9.0] * step.WARM_STEPS + [1.0, 2.0]}} for _ in range(2)]
    ranks[1]["seconds"]["plain"][-2] = 3.0
    assert step._seconds(ranks) == {"plain": [3.0, 2.0]}


@pytest.mark.parametrize("part", [(), step.SAVING_OVERRIDES], ids=["step", "saving"])
def test_the_measured_configurations_resolve(part: tuple[str, ...]) -> None:
    config = step.configuration("digits.demo", 1, 9, 8, *part)
    assert (config.rows, config.accumulation, config.budget.steps, len(config.stages)) == (8, 1, 9, 1)


def test_a_law_with_several_counts_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a law that gives one count a step"):
        step.configuration("digits.demo", 1, 9, 8, "schedule=m3")

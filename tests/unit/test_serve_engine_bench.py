"""The bench of the engine runs and says what it compares; its figures are the machine's, not asserted tightly."""

import asyncio
from pathlib import Path

import pytest
from tokendial.bench import serve_engine
from tokendial.serve.engine import Engine
from tokendial.serve.settings import EngineSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serve_engine.bench_model(tmp_path_factory.mktemp("bench") / "model")


def test_the_bench_model_loads_and_its_ladder_costs_more_flops_at_larger_counts(folder: Path) -> None:
    engine = Engine.load(folder, EngineSettings(threads=1))
    rungs = engine.ladder()
    asyncio.run(engine.close())
    assert tuple(rung.count for rung in rungs) == serve_engine.COUNTS
    assert rungs[-1].cost_flops > 4 * rungs[0].cost_flops


@pytest.mark.slow
def test_counts_and_batches_are_measured(folder: Path) -> None:
    times, share = asyncio.run(serve_engine.count_rows(folder, 1))
    assert times.value > 1.5
    assert share.value == pytest.approx(times.value / 4.6, rel=0.05)
    (batching,) = asyncio.run(serve_engine.batching_rows(folder, 1))
    assert batching.value > 1


@pytest.mark.slow
def test_the_governor_is_measured_at_the_same_rates_bending_and_not(folder: Path) -> None:
    rows = asyncio.run(serve_engine.governor_rows(folder, 3.0, (0.5,)))
    assert [row.setting.rpartition(", target")[0].rpartition(" ")[2] for row in rows[:2]] == ["on", "off"]
    assert rows[2].unit == "s"

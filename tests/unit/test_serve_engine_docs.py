"""`docs/engine.md` tells the truth: its figures are those of the simulation, its settings exist."""

import re
from pathlib import Path

import pytest
from serve_simulation import BENDS, CAPACITY, QUALITY, RATIO, governor, poisson, simulate
from tokendial.serve.settings import EngineSettings

PAGE = (Path(__file__).parents[2] / "docs" / "engine.md").read_text()
ROWS = [re.split(r" \| ", line.strip("| ")) for line in PAGE.splitlines() if re.match(r"\| \d", line)]


def test_the_simulated_replica_is_the_one_described() -> None:
    counts, qualities = re.findall(r"counts ([\d, ]+) of quality ([\d., ]+);", PAGE)[0]
    assert dict(zip(map(int, counts.split(", ")), map(float, qualities.split(", ")), strict=True)) == QUALITY
    assert f"R = {RATIO:.2f};" in PAGE


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_figures_are_those_of_the_simulation(row: list[str]) -> None:
    load = float(row[0])
    bent = simulate(poisson(load * RATIO * CAPACITY, 40, [BENDS], 0), governor())
    fixed = simulate(poisson(load * RATIO * CAPACITY, 20, [BENDS], 0), governor("off"))
    latencies = sorted(one.latency_s for one in bent.accepted)
    assert row == [
        f"{load:g}",
        f"{load * RATIO:.2f}",
        f"{bent.late_share(1.0):.1%}",
        f"{fixed.late_share(1.0):.1%}",
        f"{bent.refused_share:.1%}",
        f"{bent.mean_quality():.3f}",
        f"{latencies[len(latencies) // 2]:.2f} s",
    ]


def test_the_settings_it_names_exist() -> None:
    known = {*EngineSettings.model_fields, "may_bend", "min_quality", "latency_ms"}
    named = set(re.findall(r"`([a-z]+_[a-z]+)`", PAGE))
    assert named <= known
    assert len(ROWS) == 6

"""`docs/schedules.md` tells the truth: its example runs, its table is what the statistics give, its presets exist."""

import re
from pathlib import Path

import pytest
from tokendial.schedule import PRESETS, TokenSchedule, preset
from tokendial.schedule.stats import expected_count, expected_max, exposure

PAGE = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text()
ROWS = re.findall(r"^\| `(\w+)`[^|]*\| [^|]*\| ([\d.]+) \| ([\d.]+) \| ([\d.]*) ?\|$", PAGE, re.MULTILINE)


def test_the_worked_example_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "docs/schedules.md", "exec"), {})


def test_every_preset_is_described() -> None:
    table = PAGE.partition("## Presets")[2].partition("What the sources do")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(PRESETS)


@pytest.mark.parametrize(("name", "count", "last", "largest"), ROWS, ids=lambda value: value)
def test_the_figures_are_those_of_the_statistics(name: str, count: str, last: str, largest: str) -> None:
    schedule = TokenSchedule(preset(name, PRESETS[name].counts((64, 144, 256))))
    assert f"{expected_count(schedule, 1000):.1f}" == count
    assert f"{exposure(schedule, 1000, 256):.2f}" == last
    if largest:
        assert f"{expected_max(schedule, 1000, 8):.1f}" == largest


def test_the_table_has_a_row_for_each_preset_that_draws() -> None:
    assert {row[0] for row in ROWS} == set(PRESETS) - {"fixed", "flexivit"}

"""Recorded rows: their schema, and that their figures follow from their samples."""

import json
import re
import statistics
from pathlib import Path

import pytest
from pydantic import ValidationError
from tokendial.bench.records import Row, Section, keep, machine, read, section, spread

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "benchmarks" / "train.json"
SECTIONS = [(name, part, found) for name, parts in read(RECORDED).items() for part, found in parts.items()]
each_section = pytest.mark.parametrize(
    ("where", "part", "found"), SECTIONS, ids=lambda v: v if isinstance(v, str) else ""
)
LEAST_STEPS = 30


def row(**changes: object) -> Row:
    fields = {"name": "a ÷ b", "setting": "here", "unit": "ratio", "value": 1.0, "low": 0.9, "high": 1.1}
    return Row.model_validate({**fields, "num_samples": 40, **changes})


def test_the_spread_of_samples_is_median_and_outer_fifths() -> None:
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == {"value": 3.5, "low": 2.0, "high": 5.0, "num_samples": 6}


@pytest.mark.parametrize(
    ("limits", "met"),
    [
        ({}, None),
        ({"at_most": 1.0}, True),
        ({"at_most": 0.99}, False),
        ({"at_most": 20.0, "value": -2.5}, True),
        ({"at_least": 1.0}, True),
        ({"at_least": 1.01}, False),
    ],
)
def test_a_row_says_whether_its_target_is_met(limits: dict[str, float], met: bool | None) -> None:
    assert row(**limits).met is met


@pytest.mark.parametrize(
    ("unit", "value", "figure"),
    [("ratio", 1.0345, "1.034×"), ("share", 0.00412, "0.41%"), ("s", 23.41, "23.4 s"), ("MiB", 812.6, "813 MiB")],
)
def test_figures_are_quoted_with_their_unit(unit: str, value: float, figure: str) -> None:
    assert row(unit=unit, value=value).figure == figure


def test_keeping_a_part_leaves_other_parts_and_machines_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "train.json"
    first, second = section([row()], 0.1), section([row(value=2.0, samples={"a": [1 / 3]})], 0.1)
    keep(path, "one", first, "elsewhere")
    keep(path, "one", first)
    keep(path, "two", second)
    assert read(path) == {"elsewhere": {"one": first}, machine(): {"one": first, "two": second}}
    assert sum('"name"' in line for line in path.read_text("utf-8").splitlines()) == 3


def test_a_section_names_its_origin() -> None:
    found = section([row()], 0.5)
    assert re.fullmatch(r"[0-9a-f]{40}( with changes)?|unknown", found.commit)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\dZ", found.date)
    assert {"python", "torch", "ray", "deepspeed", "transformers", "accelerate"} <= found.versions.keys()
    assert "cores" in machine()


def test_an_unknown_field_of_a_row_is_refused() -> None:
    with pytest.raises(ValidationError):
        row(speed=3)


@pytest.mark.parametrize(
    ("where", "part", "found"), SECTIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_recorded_rows_have_an_origin_and_enough_samples(where: str, part: str, found: Section) -> None:
    assert "cores" in where
    assert {"torch", "ray", "deepspeed", "transformers"} <= found.versions.keys()
    assert found.rows
    for each in found.rows:
        assert each.low <= each.value <= each.high
        assert each.num_samples >= (1 if part == "start" else LEAST_STEPS)
        assert "not valid" not in each.setting


@pytest.mark.parametrize(
    ("where", "part", "found"), SECTIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_recorded_ratios_follow_from_their_recorded_samples(where: str, part: str, found: Section) -> None:
    samples = {name: values for each in found.rows for name, values in each.samples.items()}
    for each in found.rows:
        own, separator, peer = each.name.partition(" ÷ ")
        peer = {"plain torch loop": "plain", "DDP-gloo": "plain"}.get(peer, peer)
        if separator and own in samples and peer in samples:
            ratios = [a / b for a, b in zip(samples[own], samples[peer], strict=True)]
            assert each.value == pytest.approx(statistics.median(ratios), rel=1e-4)


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    keep(tmp_path / "train.json", "one", section([row(samples={"a": [0.1234567891]})], 0.0))
    document = json.loads((tmp_path / "train.json").read_text("utf-8"))
    assert document[machine()]["one"]["rows"][0]["samples"] == {"a": [0.123457]}

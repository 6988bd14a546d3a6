"""The sizing table of the operating guide is what its module calculates; communication grows with the nodes."""

from pathlib import Path

from tokendial.resolve import resolve
from tokendial.sizing import size, table

GUIDE = Path(__file__).parents[2] / "docs" / "operating.md"


def test_the_guide_shows_what_is_calculated_and_says_so() -> None:
    text = GUIDE.read_text("utf-8")
    assert table(resolve("vlm.paper", (), machine_cpus=None)) in text
    assert "Calculated, not measured" in text


def test_twice_the_workers_halve_the_computing_and_not_the_waiting() -> None:
    config = resolve("vlm.paper", (), machine_cpus=None)
    few, many = size(config, 16, 1), size(config, 32, 1)
    computing = [one.step_s * (1 - one.communication) for one in (few, many)]
    assert round(computing[0] / computing[1], 6) == 2
    assert many.step_s * many.communication > few.step_s * few.communication

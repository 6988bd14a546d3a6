"""The sizing table of the operating guide is what its module calculates; communication grows with the nodes."""

from pathlib import Path

import pytest
from tokendial.experiments import workload
from tokendial.resolve import resolve
from tokendial.sizing import size, state_bytes, table

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


@pytest.mark.parametrize(
    ("bf16", "weight", "gradient", "optimizer", "copy"), [(True, 2, 2, 12, 0), (False, 4, 4, 8, 4)]
)
def test_gradients_and_moments_are_held_for_what_is_trained(
    bf16: bool, weight: int, gradient: int, optimizer: int, copy: int
) -> None:
    align = (
        'stages=[{"name": "a", "share": 1, "train": ["projector"]}, {"name": "b", "share": 1, "train": ["language"]}]'
    )
    config = resolve("digits.tiny", (align, "model.lora.rank=2"))
    cost = workload("digits").cost(config)
    everything = sum(cost.num_parameters.values())
    trained = max(cost.num_parameters["projector"], cost.num_parameters["language"])
    assert trained < cost.num_parameters["frozen"]
    held = [state_bytes(config, cost, 4, stage, bf16) for stage in range(4)]
    shared = [0, optimizer * trained, (optimizer + gradient) * trained, held[0]]
    assert held[0] == weight * everything + (gradient + optimizer) * trained
    # In fp32, ZeRO 1 and 2 train a copy of the weights.
    copied = [0, copy * trained / 4, copy * trained / 4, 0]
    assert held == [held[0] - part * 3 / 4 + more for part, more in zip(shared, copied, strict=True)]

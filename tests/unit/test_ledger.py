"""The ledger adds, and comes back from JSON as it was."""

import json

import pytest
from tokendial.ledger import Ledger


def spent() -> Ledger:
    ledger = Ledger(price_per_hour=3.0)
    ledger.add(4, visual_tokens=128, text_tokens=1000, pad_tokens=10, flops=1e9, seconds=0.5, examples=32, steps=1)
    ledger.add(4, visual_tokens=128, text_tokens=900, pad_tokens=110, flops=1e9, seconds=0.5, examples=32, steps=1)
    ledger.add(64, visual_tokens=2048, flops=5e9, steps=1, peak_bytes=700)
    ledger.add(0, flops=1e8, steps=1, peak_bytes=900)
    ledger.steps = 4
    ledger.wall_seconds = 1500.0
    ledger.hold(1800, workers=2, cpus=4, gpus=2)
    return ledger


def test_sums_are_kept_per_count():
    ledger = spent()
    assert sorted(ledger.counts) == [0, 4, 64]
    assert (ledger.counts[4].text_tokens, ledger.counts[4].steps, ledger.counts[4].tokens) == (1900, 2, 2276)


def test_the_total_takes_the_largest_peak_and_the_runs_own_steps():
    total = spent().total
    assert (total.peak_bytes, total.steps, total.flops) == (900, 4, 7.1e9)


def test_a_mixed_step_is_one_step_of_the_run():
    ledger = Ledger()
    for count in (4, 16):
        ledger.add(count, steps=1, flops=1.0)
    ledger.steps += 1
    assert ledger.total.steps == 1


def test_counts_are_trained_where_a_step_took_part_in_them():
    ledger = spent()
    ledger.add(144, visual_tokens=1152, flops=1e9)
    assert ledger.trained_counts == (4, 64)


def test_hours_and_money_follow_what_was_held():
    ledger = spent()
    assert (ledger.cpu_hours, ledger.gpu_hours, ledger.money) == (2.0, 1.0, 3.0)
    assert Ledger().money is None


def test_a_ledger_survives_json():
    ledger = spent()
    document = json.loads(json.dumps(ledger.to_json()))
    assert Ledger.from_json(document) == ledger
    assert document["total"]["visual_tokens"] == 2304
    assert document["money"] == 3.0


@pytest.mark.parametrize(
    ("count", "amounts"), [(-1, {"flops": 1.0}), (4, {"flops": -1.0}), (4, {"tokens": 1.0})], ids=str
)
def test_amounts_that_cannot_be_are_refused(count: int, amounts: dict[str, float]):
    with pytest.raises(ValueError, match="a ledger adds non-negative visual_tokens"):
        Ledger().add(count, **amounts)

"""One naming scheme: every name fits it, and the final curve has a point per count."""

import pytest
from tokendial import metrics
from tokendial.curve import CurvePoint
from tokendial.ledger import Ledger

CURVE = {4: CurvePoint(0.3, (0.2, 0.4), 10), 64: CurvePoint(0.9, (0.8, 1.0), 10)}


def test_the_curve_is_logged_with_step_as_count():
    rows = metrics.curve_metrics(CURVE, step=1500)
    assert [(step, values.get("curve/quality")) for step, values in rows] == [(4, 0.3), (64, 0.9), (1500, None)]
    assert rows[-1][1] == {"quality/k4": 0.3, "quality/k64": 0.9, "autc": pytest.approx(0.6)}


def test_the_ledger_is_named_by_noun_and_count():
    ledger = Ledger(price_per_hour=1.0)
    ledger.add(64, visual_tokens=640, steps=1)
    values = metrics.ledger_metrics(ledger)
    assert values["ledger/visual_tokens/k64"] == values["ledger/visual_tokens"] == 640
    assert values["ledger/money"] == 0
    assert "ledger/money" not in metrics.ledger_metrics(Ledger())


def test_a_validation_curve_is_read_from_the_names_it_was_logged_under():
    logged = {metrics.validation_quality(count): count / 100 for count in (4, 64)}
    assert metrics.validation_curve({**logged, metrics.LOSS: 1.0}) == {4: 0.04, 64: 0.64}
    assert metrics.validation_curve({metrics.LOSS: 1.0}) == {}


def test_every_name_fits_the_scheme():
    constants = [value for key, value in vars(metrics).items() if key.isupper() and isinstance(value, str)]
    ledger = Ledger(price_per_hour=1.0)
    ledger.add(4, flops=1.0)
    made = [metrics.count_loss(4), metrics.validation_quality(4), metrics.regret(4), metrics.search_objective("autc")]
    made += [metrics.group_quality("Where is it?", 4), metrics.measure("token F1", 4), *metrics.ledger_metrics(ledger)]
    assert len(constants) == 11
    assert [name for name in [*constants, *made] if not metrics.NAME.fullmatch(name)] == []

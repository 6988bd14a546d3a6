"""Replicas follow the visual tokens wanted at full quality: bounds and delays are Ray's, the arithmetic is ours."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from tokendial.serve import autoscaling
from tokendial.serve.autoscaling import ROOM, WANTED, TokenPolicy, replicas_for

ROOMS = {"a": 1000.0, "b": 1000.0}


@pytest.mark.parametrize(
    ("wanted", "replicas"),
    [((0, 0), 1), ((250, 250), 1), ((250, 251), 2), ((500, 500), 2), ((500, 501), 3), ((5000, 0), 10)],
)
def test_replicas_hold_the_wanted_tokens_at_the_target_share(wanted: tuple[float, float], replicas: int) -> None:
    assert replicas_for(dict(zip("ab", wanted, strict=True)), ROOMS, 2, 0.5) == replicas


def test_a_replica_that_has_not_reported_counts_as_the_others_do() -> None:
    assert replicas_for({"a": 500.0}, {"a": 1000.0}, 2, 0.5) == 2
    assert replicas_for({}, {}, 3, 0.5) == 3


def test_bending_hides_no_overload() -> None:
    """Requests bent to a quarter of their tokens still count at full: the wanted tokens do not know of the bend."""
    full = replicas_for({"a": 4000.0}, {"a": 1000.0}, 1, 0.5)
    assert full == 8


def context(**figures: Any) -> Any:
    return SimpleNamespace(running_replicas=["a", "b"], target_num_replicas=2, **figures)


def test_the_policy_reads_what_replicas_report_and_survives_the_way_to_the_controller() -> None:
    cloudpickle.register_pickle_by_value(autoscaling)
    try:
        policy = pickle.loads(cloudpickle.dumps(TokenPolicy))(target_share=0.5)  # pyright: ignore[reportPrivateImportUsage]
    finally:
        cloudpickle.unregister_pickle_by_value(autoscaling)
    wanted = {"a": 900.0, "b": 700.0}
    assert policy(context(aggregated_metrics={WANTED: wanted, ROOM: ROOMS})) == (4, {})
    assert policy(context(aggregated_metrics=None)) == (2, {})

"""Replicas follow the visual tokens wanted at full quality: bounds and delays are Ray's, the arithmetic is ours."""

import pickle
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from serve_simulation import BENDS, CAPACITY, COSTS, NEW_TOKENS, Outcome, Served, governor, poisson, simulate
from tokendial.serve import autoscaling
from tokendial.serve.autoscaling import DEMAND, ROOM, WANTED, TokenPolicy, replicas_for

ROOMS = {"a": 1000.0, "b": 1000.0}
NONE = {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize(
    ("wanted", "replicas"),
    [((0, 0), 1), ((250, 250), 1), ((250, 251), 2), ((500, 500), 2), ((500, 501), 3), ((5000, 0), 10)],
)
def test_replicas_hold_the_wanted_tokens_at_the_target_share(wanted: tuple[float, float], replicas: int) -> None:
    tokens = dict(zip("ab", wanted, strict=True))
    assert replicas_for(tokens, NONE, ROOMS, 2, 0.5) == replicas
    assert replicas_for(NONE, tokens, ROOMS, 2, 0.5) == replicas
    assert replicas_for(tokens, tokens, ROOMS, 2, 0.5) == replicas


def test_a_replica_that_has_not_reported_counts_as_the_others_do() -> None:
    assert replicas_for({"a": 500.0}, {"a": 0.0}, {"a": 1000.0}, 2, 0.5) == 2
    assert replicas_for({}, {}, {}, 3, 0.5) == 3


def asked(outcome: Outcome, from_s: float, until_s: float) -> tuple[int, int]:
    """Replicas for the mean of a while, and for what was in flight alone."""
    room = 32.0 * 256
    loads = [load for load in outcome.loads if from_s <= load[0] < until_s]
    wanted, demand = mean(load[1] for load in loads), room * mean(load[2] for load in loads)
    return tuple(replicas_for({"a": wanted}, {"a": each}, {"a": room}, 1, 0.5) for each in (demand, 0.0))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", [0, 1])
def test_neither_bending_nor_refusing_hides_an_overload(seed: int) -> None:
    """Bent to a quarter of its tokens a request is soon gone, so few are in flight though twice too many come."""
    crowd = poisson(2 * CAPACITY, 20, [BENDS], seed)
    flood = poisson(20 * CAPACITY, 40, [BENDS], seed, from_s=20)
    calm = poisson(0.3 * CAPACITY, 60, [BENDS], seed, from_s=40)
    outcome = simulate(crowd + flood + calm, governor())
    assert asked(outcome, 5, 20) == (pytest.approx(4, abs=1), 1)
    assert asked(outcome, 25, 40)[0] == pytest.approx(40, rel=0.1)
    assert asked(outcome, 45, 60) == (1, 1)


def test_what_a_full_queue_refuses_is_in_the_demand() -> None:
    chosen = governor()
    outcome = simulate(poisson(10 * CAPACITY, 5, [BENDS], 0), chosen, max_queue=2)
    assert outcome.refused_share > 0.5
    assert mean(load[2] for load in outcome.loads[len(outcome.loads) // 2 :]) == pytest.approx(10, rel=0.2)


def test_one_caller_after_another_asks_for_one_replica_however_busy_he_keeps_it() -> None:
    each_s = 1.01 * COSTS.alone_s((256,), NEW_TOKENS)
    outcome = simulate([Served(each_s * number, BENDS) for number in range(200)], governor())
    assert asked(outcome, 2, 6) == (1, 1)


def context(**figures: Any) -> Any:
    return SimpleNamespace(running_replicas=["a", "b"], target_num_replicas=2, **figures)


def test_the_policy_reads_what_replicas_report_and_survives_the_way_to_the_controller() -> None:
    cloudpickle.register_pickle_by_value(autoscaling)
    try:
        policy = pickle.loads(cloudpickle.dumps(TokenPolicy))(target_share=0.5)  # pyright: ignore[reportPrivateImportUsage]
    finally:
        cloudpickle.unregister_pickle_by_value(autoscaling)
    wanted = {"a": 900.0, "b": 700.0}
    assert policy(context(aggregated_metrics={WANTED: wanted, DEMAND: NONE, ROOM: ROOMS})) == (4, {})
    assert policy(context(aggregated_metrics={WANTED: NONE, DEMAND: wanted, ROOM: ROOMS})) == (4, {})
    assert policy(context(aggregated_metrics=None)) == (2, {})

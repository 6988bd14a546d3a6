"""Replicas follow the visual tokens wanted at full quality: bounds and delays are Ray's, the arithmetic is ours."""

import pickle
from collections.abc import Mapping
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from serve_replicas import Fleet
from serve_simulation import BENDS, CAPACITY, COSTS, NEW_TOKENS, Outcome, Served, governor, poisson, simulate
from tokendial.serve import autoscaling
from tokendial.serve.autoscaling import CROWDED, DEMAND, ROOM, WANTED, TokenPolicy, replicas_for

ROOMS = {"a": 1000.0, "b": 1000.0}
NONE = {"a": 0.0, "b": 0.0}


def figures(
    wanted: Mapping[str, float] = NONE, demand: Mapping[str, float] = NONE, crowded: Mapping[str, float] = NONE
) -> dict[str, Mapping[str, float]]:
    return {WANTED: wanted, DEMAND: demand, CROWDED: crowded, ROOM: ROOMS}


@pytest.mark.parametrize(
    ("wanted", "replicas"),
    [((0, 0), 1), ((250, 250), 1), ((250, 251), 2), ((500, 500), 2), ((500, 501), 3), ((5000, 0), 10)],
)
def test_replicas_hold_the_wanted_tokens_at_the_target_share(wanted: tuple[float, float], replicas: int) -> None:
    tokens = dict(zip("ab", wanted, strict=True))
    assert replicas_for(figures(wanted=tokens), 2, 0.5) == replicas
    assert replicas_for(figures(demand=tokens, crowded=tokens), 2, 0.5) == replicas
    assert replicas_for(figures(wanted=tokens, demand=tokens, crowded=tokens), 2, 0.5) == replicas
    assert replicas_for(figures(demand=tokens), 2, 0.5) == min(replicas, 2), "arrivals that do not meet add none"


def test_a_replica_that_has_not_reported_counts_as_the_others_do() -> None:
    one = {name: {"a": tokens["a"]} for name, tokens in figures(wanted={"a": 500.0}).items()}
    assert replicas_for(one, 2, 0.5) == 2
    assert replicas_for({}, 3, 0.5) == 3


def asked(outcome: Outcome, from_s: float, until_s: float) -> tuple[int, int]:
    """Replicas for the mean of a while, and for what was in flight alone."""
    loads = [load for at, load in outcome.loads if from_s <= at < until_s]
    means = {name: {"a": mean(load[name] for load in loads)} for name in loads[0]}
    in_flight = {**means, DEMAND: {"a": 0.0}, CROWDED: {"a": 0.0}}
    return replicas_for(means, 1, 0.5), replicas_for(in_flight, 1, 0.5)


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
    later = [load[DEMAND] / load[ROOM] for _, load in outcome.loads[len(outcome.loads) // 2 :]]
    assert mean(later) == pytest.approx(10, rel=0.2)


def test_one_caller_after_another_asks_for_one_replica_however_busy_he_keeps_it() -> None:
    each_s = 1.01 * COSTS.alone_s((256,), NEW_TOKENS)
    outcome = simulate([Served(each_s * number, BENDS) for number in range(200)], governor())
    assert asked(outcome, 2, 6) == (1, 1)


@pytest.mark.parametrize(("callers", "replicas"), [(1, {1}), (2, {2}), (3, {3, 4})], ids=str)
def test_callers_who_ask_one_after_another_settle_on_replicas(callers: int, replicas: set[int]) -> None:
    """Two meet at one replica and no longer at two; those two stay, and one caller never gets a second."""
    fleet = Fleet(seed=0)
    for number in range(callers):
        fleet.at(0.01 * number, lambda: fleet.caller(until_s=60))
    fleet.run(60)
    later = fleet.history[20:]
    assert len(set(later)) == 1
    assert set(later) <= replicas
    fleet.run(40)
    assert fleet.history[-1] == 1


@pytest.mark.parametrize(("load", "replicas"), [(0.3, {1}), (0.6, {2}), (2.0, {4, 5, 6})], ids=str)
def test_replicas_grow_with_the_load_stay_and_go_with_it(load: float, replicas: set[int]) -> None:
    fleet = Fleet(seed=1)
    fleet.at(0.0, lambda: fleet.poisson(load * CAPACITY, until_s=60))
    fleet.run(60)
    assert set(fleet.history[15:]) <= replicas
    fleet.run(40)
    assert fleet.history[-1] == 1


def context(**figures: Any) -> Any:
    return SimpleNamespace(running_replicas=["a", "b"], target_num_replicas=2, **figures)


def test_the_policy_reads_what_replicas_report_and_survives_the_way_to_the_controller() -> None:
    cloudpickle.register_pickle_by_value(autoscaling)
    try:
        policy = pickle.loads(cloudpickle.dumps(TokenPolicy))(target_share=0.5)  # pyright: ignore[reportPrivateImportUsage]
    finally:
        cloudpickle.unregister_pickle_by_value(autoscaling)
    tokens = {"a": 900.0, "b": 700.0}
    assert policy(context(aggregated_metrics=figures(wanted=tokens))) == (4, {})
    assert policy(context(aggregated_metrics=figures(demand=tokens, crowded=tokens))) == (4, {})
    assert policy(context(aggregated_metrics=None)) == (2, {})

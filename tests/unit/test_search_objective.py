"""What a trial is worth, when it is pruned, and how fronts are drawn: plain arithmetic."""

from pathlib import Path
from typing import Any

import pytest
from tokendial.bench.curves import ALLOWANCE, LONG, SETTING, Wanted, configured
from tokendial.experiments import ConfigError
from tokendial.resolve import resolve
from tokendial.search.budget import START_S, flops_per_trial, parse
from tokendial.search.drive import plan_search
from tokendial.search.halving import NUM_VALIDATIONS, goes_on, reached, rungs
from tokendial.search.objective import (
    Costs,
    Curve,
    envelope,
    hypervolume,
    pareto,
    points,
    prices,
    span,
    worst_regret,
    worth,
)
from tokendial.search.plan import as_trial
from tokendial.train.room import Room

COSTS = {1: 1.0, 4: 2.0, 16: 4.0, 64: 16.0}
CURVE = {1: 0.2, 4: 0.4, 16: 0.8, 64: 0.82}


def share(*places: tuple[Curve, Costs]) -> float:
    return hypervolume((place for curve, costs in places for place in points(curve, costs)), span(COSTS))


def test_hypervolume_is_the_staircase_over_log_cost() -> None:
    # 0.2 over one doubling, 0.4 over one, 0.8 over two, 0.82 over the one beyond the dearest answer, of five doublings.
    assert share((CURVE, COSTS)) == pytest.approx((0.2 + 0.4 + 2 * 0.8 + 0.82) / 5)
    assert share(({1: 0.5, 4: 0.1, 16: 0.1, 64: 0.1}, COSTS)) == pytest.approx(0.5)
    other = {1: 0.5, 4: 0.5, 16: 0.5, 64: 0.9}
    assert share((CURVE, COSTS), (other, COSTS)) == pytest.approx((0.5 + 0.5 + 1.6 + 0.9) / 5)
    assert hypervolume([(1.0, 0.5)], span({4: 1.0})) == 0.5


def test_every_count_of_a_curve_weighs_in_hypervolume() -> None:
    for count in CURVE:
        assert share(({**CURVE, count: CURVE[count] + 0.01}, COSTS)) > share((CURVE, COSTS))


def test_a_model_whose_answers_are_dearer_has_less_hypervolume_at_the_same_quality() -> None:
    by_price = [
        share((CURVE, {count: factor * cost for count, cost in COSTS.items()})) for factor in (0.5, 1.0, 2.0, 40.0)
    ]
    assert by_price == sorted(by_price, reverse=True)
    assert len(set(by_price)) == 4
    assert by_price[-1] == 0.0


def test_the_price_of_being_good_is_that_of_the_smallest_count_near_the_best_of_all() -> None:
    assert prices({3: (CURVE, COSTS)}) == {3: 4.0}
    assert prices({0: ({1: 0.81, 4: 0.4, 16: 0.8, 64: 0.82}, COSTS)}) == {0: 1.0}
    # The second is as good at no count; the third is, at a price of its own, and the dearest answer is one of its.
    dear = {count: 3 * cost for count, cost in COSTS.items()}
    found = prices({0: (CURVE, COSTS), 1: (dict.fromkeys(COSTS, 0.5), COSTS), 2: (CURVE, dear)})
    assert found == {0: 4.0, 1: 96.0, 2: 12.0}


def test_a_model_that_learned_nothing_is_on_no_front() -> None:
    curves = {0: (CURVE, COSTS), 1: (dict.fromkeys(COSTS, 0.1), COSTS)}
    priced = prices(curves)
    judged = [(worth(("autc", "cost"), *curves[number], span(COSTS))["autc"], priced[number]) for number in curves]
    assert pareto(judged, (False, True)) == [0]


def test_the_worth_of_a_curve_alone_is_all_but_its_price() -> None:
    assert worth(("autc", "cost"), {1: 0.0, 4: 1.0, 16: 1.0}, COSTS, span(COSTS)) == {"autc": pytest.approx(0.75)}


def test_worst_regret_is_held_against_the_best_of_all_at_each_count() -> None:
    best = envelope([CURVE, {1: 0.5, 4: 0.5, 16: 0.5, 64: 0.9}])
    assert best == {1: 0.5, 4: 0.5, 16: 0.8, 64: 0.9}
    count, gap = worst_regret(CURVE, best)
    assert (count, gap) == (1, pytest.approx(0.3))


def test_the_pareto_front_leaves_out_what_is_beaten_in_everything() -> None:
    points = [(0.9, 5.0), (0.8, 2.0), (0.7, 3.0), (0.9, 5.0), (0.95, 9.0)]
    assert pareto(points, (False, True)) == [0, 1, 4]


def test_rungs_are_shares_of_the_allowance() -> None:
    assert rungs() == (pytest.approx(1 / 9), pytest.approx(1 / 3))
    shares = (0.1, 0.3)
    cases = ((0.04, 0), (0.1, 0), (0.2, 1), (0.5, 0), (0.9, 2))
    assert [reached(share, passed, shares) for share, passed in cases] == [None, 0, None, 1, None]


@pytest.mark.parametrize("off", [-0.04, -0.01, 0.0, 0.01, 0.04])
def test_a_rung_is_met_at_the_curve_nearest_to_it(off: float) -> None:
    """Curves are at ninths of the steps; cheap or dear early steps put them before or after ninths of the FLOPs."""
    met, passed = [], 0
    for curve in range(1, NUM_VALIDATIONS):
        rung = reached(curve / NUM_VALIDATIONS + off, passed, rungs())
        if rung is not None:
            met.append(curve)
            passed = rung + 1
    assert met == [1, 3]


@pytest.mark.parametrize("flops", [ALLOWANCE, LONG])
def test_the_replayed_curves_are_shown_where_a_search_shows_them(flops: float) -> None:
    wanted = Wanted(part="rank", label="tokenflex", overrides=("schedule=tokenflex",), allowance=flops)
    trial = as_trial(resolve("digits", (*SETTING, *wanted.overrides)), flops, shares_tower=False, judged=True)
    assert configured(wanted).evaluation.every == trial.evaluation.every > 50


def test_a_trial_goes_on_among_the_best_third_seen_so_far() -> None:
    assert goes_on(0.1, [])
    assert goes_on(0.1, [0.9])
    assert not goes_on(0.1, [0.9, 0.8])
    assert goes_on(0.95, [0.9, 0.8, 0.7, 0.6, 0.5])
    assert goes_on(0.85, [0.9, 0.8, 0.7, 0.6, 0.5])
    assert not goes_on(0.75, [0.9, 0.8, 0.7, 0.6, 0.5])


@pytest.mark.parametrize(
    ("text", "amount", "kind"),
    [
        ("2e13", 2e13, "flops"),
        ("5e12flops", 5e12, "flops"),
        ("30min", 1800, "seconds"),
        ("2h", 7200, "seconds"),
        ("1.5gpuh", 5400, "worker_seconds"),
    ],
)
def test_budgets_are_flops_time_or_worker_hours(text: str, amount: float, kind: str) -> None:
    found = parse(text, per_trial=False)
    assert (found.amount, found.kind) == (amount, kind)


@pytest.mark.parametrize("text", ["soon", "30 parsecs", "-3min", "0", "min"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an amount such as 2e13"):
        parse(text, per_trial=True)


@pytest.mark.parametrize(
    ("text", "per_trial", "trials", "slots", "seconds"),
    [
        ("6min", False, 4, 2, 180),
        ("6min", False, 5, 2, 120),
        ("6min", False, 4, 16, 360),
        ("6min", True, 4, 16, 360),
        ("0.4cpuh", False, 4, 16, 180),
    ],
)
def test_a_search_in_time_ends_in_it_whatever_fits_at_once(
    text: str, per_trial: bool, trials: int, slots: int, seconds: float
) -> None:
    """Trials of two workers: slots are worked off one trial after the other, and an hour of two workers is half one."""
    config = resolve("digits.tiny", ("workers=2",), machine_cpus=None)
    flops = flops_per_trial(parse(text, per_trial), config, trials, lambda _: slots, lambda _: 1e9)
    assert flops == pytest.approx((seconds - START_S) * 1e9)


@pytest.mark.parametrize(
    ("gib", "options", "seconds"),
    [(100, {}, 360), (100, {"at_once": 2}, 180), (6.5, {}, 180), (1, {}, 90)],
    ids=["all at once", "two at once", "memory for two", "memory for none"],
)
def test_a_search_in_time_asks_the_cluster_that_trains_it(
    gib: float, options: dict[str, Any], seconds: float, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many fit at once is a matter of CPUs and of memory: a GiB for each of two workers and what drives them."""
    del home
    from tokendial.search import speed

    monkeypatch.setattr(speed.ray_trainer, "connect", lambda: None)
    monkeypatch.setattr(speed.ray_trainer, "cluster_room", lambda: Room(cpus=64, gpus=0))
    monkeypatch.setattr(speed.ray, "cluster_resources", lambda: {"memory": gib * 2**30})
    monkeypatch.setattr(speed, "measured_speed", lambda config: 1e8)
    plan = plan_search("digits.tiny", ("workers=2", "seed=0,1,2,3"), budget="6min", **options)
    assert plan.flops == pytest.approx((seconds - START_S) * 1e8)

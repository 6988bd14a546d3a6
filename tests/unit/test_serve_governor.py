"""The governor under simulated load: open-loop Poisson arrivals at a replica that bends, and at one that does not."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_simulation import (
    BENDS,
    CAPACITY,
    COSTS,
    NEW_TOKENS,
    QUALITY,
    RATIO,
    STAYS,
    Outcome,
    Served,
    governor,
    poisson,
    scaled,
    simulate,
)
from tokendial.serve.costs import Text
from tokendial.serve.governor import Governor, Terms

TARGET_S = 1.0
FLOORED = replace(BENDS, min_quality=0.85)
EXACT = Terms((256,), (True,), may_bend=True)


@pytest.mark.parametrize("load", [0.5, 0.6, 0.7, 0.8, 0.85])
@pytest.mark.parametrize("seed", [0, 1])
def test_bending_keeps_the_target_far_above_the_capacity_of_the_full_count(load: float, seed: int) -> None:
    """`load` is a share of capacity × R, the most that bending can win; a fixed count breaks down at 1 / R."""
    rate = load * RATIO * CAPACITY
    bent = simulate(poisson(rate, 40, [BENDS], seed), governor())
    fixed = simulate(poisson(rate, 20, [BENDS], seed), governor("off"))
    assert bent.late_share(TARGET_S) < 0.01
    assert bent.refused_share < 0.01
    assert fixed.late_share(TARGET_S) >= 10 * max(0.01, bent.late_share(TARGET_S))


def test_above_what_bending_can_win_the_rest_is_refused_and_the_accepted_are_in_time() -> None:
    for load in (1.2, 2.0, 10.0):
        outcome = simulate(poisson(load * RATIO * CAPACITY, 20, [BENDS], 0), governor())
        assert outcome.late_share(TARGET_S) < 0.01
        served_rate = len(outcome.accepted) / 20
        assert served_rate >= 0.8 * RATIO * CAPACITY, f"goodput at {load}×"


def test_light_load_is_served_at_full_count() -> None:
    outcome = simulate(poisson(0.3 * CAPACITY, 60, [BENDS], 0), governor())
    assert outcome.mean_quality() > 0.99 * QUALITY[256]
    assert outcome.late_share(TARGET_S) == 0


def test_quality_falls_no_further_than_the_load_needs() -> None:
    qualities = [
        simulate(poisson(load * CAPACITY, 40, [BENDS], 0), governor()).mean_quality() for load in (0.5, 1.2, 1.8, 3.4)
    ]
    assert qualities == sorted(qualities, reverse=True)
    assert qualities[0] > 0.93
    assert qualities[1] > 0.88
    assert qualities[2] > 0.8
    assert qualities[-1] >= QUALITY[16]


def test_between_two_levels_both_counts_are_given_in_a_proportion_that_follows_the_load() -> None:
    shares = []
    for load in (2.0, 2.3, 2.6, 2.9):
        outcome = simulate(poisson(load * CAPACITY, 30, [BENDS], 0), governor())
        counts = Counter(one.choice.counts for one in outcome.accepted if one.choice)
        shares.append(counts[(16,)] / len(outcome.accepted))
        assert outcome.late_share(TARGET_S) < 0.01
    assert shares == sorted(shares)
    assert shares[0] < 0.3
    assert 0.2 < shares[2] < 0.8


def full_again_after(outcome: Outcome, dropped_s: float) -> float:
    """Seconds from a drop of load to the first request that starts at full count, with all later ones."""
    late = [one.arrived for one in outcome.accepted if one.choice and one.choice.counts != (256,)]
    return max(late, default=dropped_s) - dropped_s


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_full_count_is_back_within_two_seconds_of_a_drop(seed: int) -> None:
    crowd = poisson(0.8 * RATIO * CAPACITY, 20, [BENDS], seed)
    after = poisson(0.2 * CAPACITY, 40, [BENDS], seed, from_s=20)
    outcome = simulate(crowd + after, governor())
    assert full_again_after(outcome, 20) < 2
    assert max(level for now, level in outcome.levels if now < 20) > 0
    assert outcome.late_share(TARGET_S) < 0.01


def test_a_burst_is_bent_at_once_and_answered_in_time() -> None:
    quiet = poisson(0.2 * CAPACITY, 20, [BENDS], 0)
    burst = poisson(40 * CAPACITY, 10.05, [BENDS], 1, from_s=10)
    outcome = simulate(quiet + burst, governor())
    assert len(burst) > 40
    assert outcome.late_share(TARGET_S) < 0.01
    assert outcome.refused_share < 0.01


def test_a_silent_replica_is_at_full_count_when_somebody_comes_again() -> None:
    crowd = poisson(0.8 * RATIO * CAPACITY, 5, [BENDS], 0)
    later = poisson(0.1 * CAPACITY, 60, [BENDS], 0, from_s=20)
    assert full_again_after(simulate(crowd + later, governor()), 5) < 2


def test_one_look_after_a_long_pass_is_not_taken_for_a_while_without_work() -> None:
    chosen = governor()
    heavy, none = [5.0] * chosen.num_levels, [0.0] * chosen.num_levels
    chosen.update(0.0, heavy)
    chosen.corrected(0.8, 0.8)
    assert chosen.update(0.8, none) > 0, "it fits at one look"
    chosen.corrected(0.8, 0.8)
    assert chosen.update(1.6, none) == 0, "it has fitted for 0.8 s"
    chosen.update(2.4, heavy)
    assert chosen.update(3.2, none, running=True) > 0, "the look of one who asks for the load, in the midst of a pass"
    chosen.update(4.0, heavy)
    assert chosen.update(4.8, none) == 0, "nothing was there to be done"


def test_a_steady_load_does_not_make_the_level_flutter() -> None:
    levels = simulate(poisson(1.9 * CAPACITY, 60, [BENDS], 0), governor()).levels
    changes = sum(before != after for (_, before), (_, after) in pairwise(levels))
    assert changes < 60, "at most once a second"


@pytest.mark.parametrize("consenting", [0.9, 0.5, 0.2])
def test_mixed_consent_is_kept_in_time_by_those_who_consent_and_by_refusing(consenting: float) -> None:
    """With share c bending, capacity is 1 / (c / R + 1 - c) of the full count's; 85 % of that is asked for."""
    rate = 0.85 * CAPACITY / (consenting / RATIO + 1 - consenting)
    many = round(10 * consenting)
    terms = [BENDS] * many + [STAYS] * (10 - many)
    outcome = simulate(poisson(rate, 40, terms, 0), governor())
    assert outcome.late_share(TARGET_S) < 0.01
    assert outcome.refused_share < 0.02
    unbent = [one.choice.counts for one in outcome.accepted if one.choice and one.terms is STAYS]
    assert set(unbent) == {(256,)}


ASKED = st.builds(
    Terms,
    wanted=st.tuples(st.sampled_from([16, 64, 144, 256])),
    exact=st.tuples(st.booleans()),
    may_bend=st.booleans(),
    min_quality=st.sampled_from([0.0, 0.6, 0.7, 0.85, 0.93, 0.95]),
    target_s=st.sampled_from([float("inf"), 0.05, 0.5, 5.0]),
)


@settings(max_examples=60, deadline=None)
@given(terms=st.lists(ASKED, min_size=1, max_size=8), load=st.floats(0.1, 20), floor=st.sampled_from([0.0, 0.7, 0.9]))
def test_nobody_is_bent_without_consent_or_below_a_floor_whatever_the_mix(
    terms: list[Terms], load: float, floor: float
) -> None:
    outcome = simulate(poisson(load * CAPACITY, 3, terms, 0), governor(floor_quality=floor))
    for one in outcome.accepted:
        assert one.choice is not None
        (count,), (wanted,) = one.choice.counts, one.terms.wanted
        if one.terms.exact[0] or not one.terms.may_bend:
            assert count == wanted
        assert count <= wanted
        if count != wanted:
            assert QUALITY[count] >= max(floor, one.terms.min_quality)
            assert one.choice.reason in ("bent", "target")


def test_the_shadow_changes_nothing_and_records_what_bending_would_have_done() -> None:
    rate = 0.6 * RATIO * CAPACITY
    shadow = simulate(poisson(rate, 20, [BENDS], 0), governor("shadow"))
    off = simulate(poisson(rate, 20, [BENDS], 0), governor("off"))
    assert [one.ended for one in shadow.served] == [one.ended for one in off.served]
    would = [one.choice.bent_to for one in shadow.accepted if one.choice and one.choice.reason == "shadow"]
    assert len(would) > 0.5 * len(shadow.accepted)
    assert {one.choice.counts for one in shadow.accepted if one.choice} == {(256,)}
    assert all(counts < (256,) for counts in would)


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_a_wrong_calibration_is_learned_from_what_steps_take(factor: float) -> None:
    chosen = governor(costs=scaled(factor))
    outcome = simulate(poisson(0.7 * RATIO * CAPACITY, 40, [BENDS], 0), chosen)
    assert chosen.scale == pytest.approx(1 / factor, rel=0.05)
    assert outcome.late_share(TARGET_S) < 0.01
    assert outcome.refused_share < 0.02


def test_a_machine_that_slows_down_bends_more() -> None:
    rate = 0.3 * RATIO * CAPACITY
    slow = simulate(poisson(rate, 30, [BENDS], 0), governor(), slowdown=lambda now: 2.0)
    usual = simulate(poisson(rate, 30, [BENDS], 0), governor())
    assert slow.late_share(TARGET_S) < 0.01
    assert slow.mean_quality() < usual.mean_quality() - 0.02


@pytest.mark.parametrize("slowness", [1.0, 10.0])
def test_one_caller_after_another_is_never_bent_however_busy_he_keeps_the_replica(slowness: float) -> None:
    """Each request comes right after the last answer: nobody waits, though the replica has no time left."""
    costs = scaled(slowness)
    each_s = costs.alone_s((256,), NEW_TOKENS)
    assert each_s * 1.01 < TARGET_S
    arrivals = [Served(1.01 * each_s * number, BENDS) for number in range(200)]
    outcome = simulate(arrivals, governor(costs=costs), slowdown=lambda now: slowness)
    assert {one.choice.counts for one in outcome.accepted if one.choice} == {(256,)}
    assert outcome.refused_share == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_after_a_crowd_one_caller_is_at_full_count_within_two_seconds(seed: int) -> None:
    each_s = COSTS.alone_s((256,), NEW_TOKENS)
    crowd = poisson(0.8 * RATIO * CAPACITY, 10, [BENDS], seed)
    caller = [Served(11 + 1.01 * each_s * number, BENDS) for number in range(200)]
    assert full_again_after(simulate(crowd + caller, governor()), 10) < 2


@pytest.mark.parametrize("period_s", [0.3, 1, 5])
@pytest.mark.parametrize("load", [0.5, 1.0])
def test_a_machine_that_is_four_times_slower_every_other_while_keeps_the_target(period_s: float, load: float) -> None:
    """Others take its cores and give them back; `load` is of capacity × R at its mean speed."""
    rate = load * RATIO * CAPACITY * 2 / 5
    arrivals = poisson(rate, 60, [BENDS], 0)
    outcome = simulate(arrivals, governor(), slowdown=lambda now: 4.0 if int(now / period_s) % 2 else 1.0)
    assert outcome.late_share(TARGET_S) < 0.01
    assert outcome.refused_share < (0.05 if load == 0.5 else 0.3)


def test_a_target_that_no_answer_can_meet_does_not_turn_everybody_away() -> None:
    """An answer takes fifteen times the target at its smallest count; half of what can be served is asked for."""
    slow = scaled(100.0)
    rate = 0.5 * RATIO * CAPACITY / 100
    outcome = simulate(poisson(rate, 2000, [BENDS], 0), governor(costs=slow, target_s=0.1), slowdown=lambda now: 100.0)
    assert slow.alone_s((16,), NEW_TOKENS) > 0.1 * 15
    assert outcome.refused_share < 0.5
    assert outcome.largest_batch > 1


def test_a_target_of_its_own_bends_a_request_that_waited_though_the_level_is_zero() -> None:
    chosen = governor()
    hurried = replace(BENDS, target_s=0.1)
    assert chosen.choose(hurried, waited_s=0.0, new_tokens=NEW_TOKENS).counts == (256,)
    late = chosen.choose(hurried, waited_s=0.06, new_tokens=NEW_TOKENS)
    assert late.counts < (256,)
    assert late.reason == "target"
    assert chosen.choose(replace(hurried, may_bend=False), 0.06, NEW_TOKENS).counts == (256,)


def test_counts_that_others_beat_are_never_bent_to() -> None:
    from tokendial.model_folder import Rung
    from tokendial.serve.ladder import Ladder

    rungs = {
        count: Rung(count=count, quality=quality, quality_ci=(quality, quality), cost_flops=1.0)
        for count, quality in {4: 0.36, 16: 0.966, 36: 0.94, 64: 0.969, 144: 0.964}.items()
    }
    ladder = Ladder((4, 16, 36, 64, 144), rungs)
    assert ladder.efficient() == (64, 16, 4)
    assert ladder.largest == 144


def test_a_barred_count_is_not_bent_to_until_it_is_let_in_again() -> None:
    chosen = governor()
    assert chosen.plan(BENDS)[-1] == (16,)
    assert chosen.bar({16})
    assert chosen.plan(BENDS)[-1] == (64,)
    assert not chosen.bar({16})
    chosen.bar(())
    assert chosen.plan(BENDS)[-1] == (16,)


def test_images_are_bent_each_to_its_own_floor_and_exact_ones_stay() -> None:
    terms = Terms((256, 64, 144), (False, False, True), may_bend=True, min_quality=0.7)
    assert governor().plan(terms)[-1] == (64, 64, 144)
    assert governor(floor_quality=0.9).plan(terms)[-1] == (144, 64, 144)


def test_an_uncalibrated_governor_bends_and_refuses_nothing() -> None:
    chosen = Governor((256, 16), QUALITY, scaled(0.0))
    outcome = simulate(poisson(3 * CAPACITY, 5, [BENDS], 0), chosen)
    assert outcome.refused_share == 0
    assert {one.choice.counts for one in outcome.accepted if one.choice} == {(256,)}


def test_costs_lie_on_lines_between_and_beyond_what_was_measured() -> None:
    assert COSTS.prefill_s(64, 8) == pytest.approx(0.049)
    assert COSTS.prefill_s(104, 8) == pytest.approx((0.049 + 0.105) / 2)
    assert COSTS.prefill_s(512, 1) > COSTS.prefill_s(256, 1)
    assert COSTS.prefill_s(0, 1) > 0
    assert COSTS.share_s((256,), 1) < COSTS.alone_s((256,), 1)
    assert COSTS.share_s((16,), 5) - COSTS.share_s((16,), 1) == pytest.approx(4 * COSTS.token_s((16,)))


def test_text_costs_by_its_length() -> None:
    costs = replace(COSTS, text=Text(few=20, many=1024, read_token_s=1e-3, step_token_s=1e-5))
    assert costs.read_s((256,), 4, text=20) == COSTS.read_s((256,), 4)
    assert costs.read_s((), 1, text=1020) - COSTS.read_s((), 1) == pytest.approx(1.0)
    assert costs.decode_s(256, 4, text=1020) - COSTS.decode_s(256, 4) == pytest.approx(0.04)
    chosen = governor(costs=costs)
    more = [long - short for short, long in zip(chosen.work_s(BENDS, 5), chosen.work_s(BENDS, 5, 1020), strict=True)]
    assert more == pytest.approx([1.04] * chosen.num_levels)

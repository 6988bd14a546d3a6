"""Named schedules against their sources, phases, temperature, combination weights, strata and statistics."""

import math
from collections import Counter

import pytest
from tokendial.schedule import PRESETS, ScheduleConfig, TokenSchedule, preset
from tokendial.schedule.draw import TOTAL
from tokendial.schedule.stats import (
    expected_cost,
    expected_count,
    expected_max,
    expected_passes,
    exposure,
    mean_law,
)

PAPER = (64, 144, 256)
EVEN = tuple(range(2, 257, 2))


def schedule(**fields: object) -> TokenSchedule:
    return TokenSchedule(ScheduleConfig.model_validate({"counts": PAPER, "weights": (1, 1, 1), **fields}))


def probabilities(law: tuple[int, ...]) -> list[float]:
    return [share / TOTAL for share in law]


# Sources, one fact each (docs/schedules.md cites them).


def test_fixed_always_draws_its_count() -> None:
    fixed = TokenSchedule(preset("fixed", (144,)))
    assert {fixed.draw(0, step, 4, 100).counts for step in range(200)} == {(144,)}


def test_tokenflex_expects_184_tokens_at_paper_scale() -> None:
    tokenflex = TokenSchedule(preset("tokenflex", PAPER))
    assert probabilities(tokenflex.law(0, 1)) == pytest.approx([0.2, 0.3, 0.5], abs=1e-9)
    assert expected_count(tokenflex, 1000) == pytest.approx(184.0, abs=1e-6)
    assert 1 - expected_count(tokenflex, 1000) / 256 == pytest.approx(0.28, abs=0.005)


def test_tokenflex_draws_one_count_for_the_whole_batch() -> None:
    plan = TokenSchedule(preset("tokenflex", PAPER)).draw(0, 3, 32, 100)
    assert len(plan.groups) == 1
    assert plan.groups[0].positions == range(32)


def test_mqt_uses_all_tokens_for_half_the_run_then_uniform_even_prefixes() -> None:
    mqt = TokenSchedule(preset("mqt", PRESETS["mqt"].counts((256,))))
    assert mqt.counts == EVEN
    assert {mqt.draw(0, step, 4, 2000).counts for step in range(1000)} == {(256,)}
    second = probabilities(mqt.law(1000, 2000))
    assert second == pytest.approx([1 / 128] * 128, abs=1e-9)


def test_mqt_second_stage_exposes_late_tokens_rarely() -> None:
    """S(1) = 1, S(129) = 1/2, S(255) = 1/128; averaged with the first half of the run, S(255) is just over 1/2."""
    second = schedule(counts=EVEN, weights=(1,) * 128)
    assert exposure(second, 100, 1) == pytest.approx(1)
    assert exposure(second, 100, 129) == pytest.approx(0.5, abs=1e-6)
    assert exposure(second, 100, 255) == pytest.approx(1 / 128, abs=1e-6)
    assert exposure(second, 100, 257) == 0
    whole = TokenSchedule(preset("mqt", EVEN))
    assert exposure(whole, 1000, 255) == pytest.approx(0.5 + 0.5 / 128, abs=1e-6)


def test_m3_runs_every_count_in_every_step_at_weight_one_fifth() -> None:
    m3 = TokenSchedule(preset("m3", (1, 9, 36, 144, 576)))
    plan = m3.draw(0, 0, 16, 10)
    assert plan.counts == (1, 9, 36, 144, 576)
    assert [group.loss_weight for group in plan.groups] == pytest.approx([0.2] * 5)
    assert all(group.positions == range(16) for group in plan.groups)
    assert expected_count(m3, 10) == 1 + 9 + 36 + 144 + 576


def test_flextok_rounds_uniform_lengths_up_to_powers_of_two() -> None:
    """P(256) = 1/2, P(128) = 1/4, …, P(2) = P(1) = 1/256."""
    flextok = TokenSchedule(preset("flextok", PRESETS["flextok"].counts((64, 256))))
    assert flextok.counts == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    expected = [1 / 256, *(2**n / 512 for n in range(1, 9))]
    assert probabilities(flextok.law(0, 1)) == pytest.approx(expected, abs=1e-9)
    assert expected_count(flextok, 10) == pytest.approx(170.7, abs=0.05)
    assert flextok.config.mix == "sample"


def test_flextok_other_laws_have_the_published_means_and_exposures() -> None:
    uniform = schedule(counts=tuple(range(1, 257)), weights=(1,) * 256, mix="sample")
    powers = schedule(counts=tuple(2**n for n in range(9)), weights=(1,) * 9, mix="sample")
    assert expected_count(uniform, 10) == pytest.approx(128.5, abs=1e-4)
    assert expected_count(powers, 10) == pytest.approx(56.8, abs=0.05)
    assert exposure(uniform, 10, 256) == pytest.approx(1 / 256, abs=1e-6)
    assert exposure(powers, 10, 256) == pytest.approx(1 / 9, abs=1e-6)
    assert exposure(TokenSchedule(preset("flextok", powers.counts)), 10, 256) == pytest.approx(1 / 2, abs=1e-6)


def test_flexivit_is_uniform_and_taught_by_the_largest_count() -> None:
    sides = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)
    flexivit = TokenSchedule(preset("flexivit", tuple(side * side for side in sides)))
    assert probabilities(flexivit.law(0, 1)) == pytest.approx([0.1] * 10, abs=1e-9)
    groups = [flexivit.draw(0, step, 4, 500).groups[0] for step in range(500)]
    assert all(group.teacher_count == (None if group.count == 900 else 900) for group in groups)


def test_sandwich_runs_both_ends_and_one_count_between() -> None:
    sandwich = TokenSchedule(preset("sandwich", (4, 16, 36, 64, 144)))
    plans = [sandwich.draw(0, step, 8, 100) for step in range(100)]
    assert all(plan.counts[0] == 4 and plan.counts[-1] == 144 and len(plan.counts) == 3 for plan in plans)
    assert {plan.counts[1] for plan in plans} == {16, 36, 64}
    for plan in plans:
        assert sum(group.loss_weight for group in plan.groups) == pytest.approx(1)
        assert [group.teacher_count for group in plan.groups] == [144, 144, None]


@pytest.mark.parametrize("counts", [(16,), (4, 16)])
def test_sandwich_of_one_or_two_counts_runs_them_all(counts: tuple[int, ...]) -> None:
    assert TokenSchedule(preset("sandwich", counts)).draw(0, 0, 4, 10).counts == counts


def test_smallest_runs_the_smallest_count_beside_the_drawn_one() -> None:
    smallest = schedule(counts=(4, 16, 144), weights=(1, 2, 2), mix="smallest")
    plans = [smallest.draw(0, step, 8, 100) for step in range(100)]
    assert {plan.counts for plan in plans} == {(4,), (4, 16), (4, 144)}
    assert all(sum(group.loss_weight for group in plan.groups) == 1 for plan in plans)
    assert all(group.positions == range(8) for plan in plans for group in plan.groups)


def test_curriculum_moves_from_small_to_large_counts() -> None:
    curriculum = TokenSchedule(preset("curriculum", (4, 16, 64)))
    assert probabilities(curriculum.law(0, 100)) == pytest.approx([3 / 6, 2 / 6, 1 / 6], abs=1e-9)
    assert probabilities(curriculum.law(100, 100)) == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=1e-9)
    large = [curriculum.law(step, 100)[2] for step in range(101)]
    assert large == sorted(large)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_law_over_the_count_set_it_is_given(name: str) -> None:
    for base in ((16,), (4, 16), PAPER, (1, 9, 36, 144, 576)):
        config = preset(name, PRESETS[name].counts(base))
        assert config.preset == name
        assert config.counts[-1] == base[-1]
        assert TokenSchedule(config).draw(0, 0, 8, 10).groups


def test_an_unknown_preset_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match="'tokenflx' is unknown; choose one of fixed, tokenflex"):
        preset("tokenflx", PAPER)


# Phases and temperature.


def test_step_phases_change_at_their_boundary() -> None:
    phases = [{"until": 0.25, "weights": (1, 0, 0)}, {"until": 1, "weights": (0, 0, 1)}]
    piecewise = schedule(phases=phases)
    assert [piecewise.draw(0, step, 1, 100).counts for step in (0, 24, 25, 99)] == [(64,), (64,), (256,), (256,)]


@pytest.mark.parametrize(
    ("ease", "quarter"), [("linear", 0.25), ("cosine", (1 - math.cos(math.pi / 4)) / 2), ("step", 1.0)]
)
def test_phases_ease_between_weight_vectors(ease: str, quarter: float) -> None:
    eased = schedule(weights=(1, 0, 0), phases=[{"until": 1, "weights": (0, 0, 1), "ease": ease}])
    law = probabilities(eased.law(25, 100))
    assert law == pytest.approx([1 - quarter, 0, quarter], abs=1e-9)
    assert probabilities(eased.law(100, 100)) == pytest.approx([0, 0, 1], abs=1e-9)


def test_a_phase_starts_from_the_phase_before() -> None:
    phases = [{"until": 0.5, "weights": (0, 1, 0)}, {"until": 1, "weights": (0, 0, 1), "ease": "linear"}]
    assert probabilities(schedule(phases=phases).law(75, 100)) == pytest.approx([0, 0.5, 0.5], abs=1e-9)


def test_weights_of_any_scale_are_interpolated_as_probabilities() -> None:
    phases = [{"until": 1, "weights": (0, 0, 1), "ease": "linear"}]
    small, large = schedule(weights=(1, 0, 0), phases=phases), schedule(weights=(1000, 0, 0), phases=phases)
    assert small.law(30, 100) == large.law(30, 100)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1, [0.2, 0.3, 0.5]), (1e-6, [0, 0, 1]), (1e12, [1 / 3, 1 / 3, 1 / 3]), (0.5, [4 / 38, 9 / 38, 25 / 38])],
    ids=["one", "cold", "hot", "half"],
)
def test_temperature_sharpens_or_flattens_the_law(temperature: float, expected: list[float]) -> None:
    law = schedule(weights=(2, 3, 5), temperature=temperature).law(0, 1)
    assert probabilities(law) == pytest.approx(expected, abs=1e-6)


def test_temperature_never_wakes_a_count_of_weight_zero() -> None:
    assert schedule(weights=(0, 1, 1), temperature=1e12).law(0, 1)[0] == 0


def test_temperature_moves_linearly_to_its_end() -> None:
    moving = schedule(weights=(2, 3, 5), temperature=4, temperature_end=1)
    assert moving.law(50, 100) == schedule(weights=(2, 3, 5), temperature=2.5).law(0, 1)
    assert moving.law(100, 100) == schedule(weights=(2, 3, 5)).law(0, 1)


# Combination, distillation and strata.


def test_importance_weights_make_any_law_estimate_the_wanted_mixture() -> None:
    """Exactly, over the law: sum of p(k) · weight(k) · loss(k) = sum of wanted(k) · loss(k)."""
    for mix in ("one", "sample"):
        weighted = schedule(weights=(2, 3, 5), loss_weights=(1, 1, 2), importance=True, mix=mix)
        seen = {}
        for step in range(60):
            seen |= {group.count: group.loss_weight for group in weighted.draw(0, step, 8, 60).groups}
        law = dict(zip(PAPER, probabilities(weighted.law(0, 1)), strict=True))
        assert {k: law[k] * seen[k] for k in PAPER} == pytest.approx({64: 0.25, 144: 0.25, 256: 0.5})


def test_loss_weights_without_importance_are_used_as_given() -> None:
    weighted = schedule(loss_weights=(1, 2, 3))
    seen = {g.count: g.loss_weight for step in range(60) for g in weighted.draw(0, step, 8, 60).groups}
    assert seen == {64: 1, 144: 2, 256: 3}


@pytest.mark.parametrize("teacher", [64, 144, 256, "max"])
def test_the_teacher_teaches_every_other_count(teacher: int | str) -> None:
    distilled = schedule(mix="all", distil={"teacher": teacher})
    wanted = 256 if teacher == "max" else teacher
    groups = distilled.draw(0, 0, 4, 10).groups
    assert [g.teacher_count for g in groups] == [None if k == wanted else wanted for k in PAPER]


@pytest.mark.parametrize(("batch", "stratum"), [(32, 4), (40, 8), (64, 2), (10, 1)])
def test_strata_are_contiguous_blocks_of_whole_strata_near_the_law(batch: int, stratum: int) -> None:
    plan = schedule(weights=(2, 3, 5), mix="stratified", stratum=stratum).draw(0, 0, batch, 10)
    positions = [p for group in plan.groups for p in group.positions]
    assert positions == list(range(batch))
    for group in plan.groups:
        assert len(group.positions) % stratum == 0
        share = {64: 0.2, 144: 0.3, 256: 0.5}[group.count]
        assert abs(len(group.positions) - share * batch) < stratum


def test_strata_of_a_batch_that_fits_are_the_exact_mixture() -> None:
    stratified = schedule(weights=(2, 3, 5), mix="stratified", stratum=4)
    for step in range(5):
        sizes = {g.count: len(g.positions) for g in stratified.draw(step, step, 40, 10).groups}
        assert sizes == {64: 8, 144: 12, 256: 20}
    assert expected_count(stratified, 10, 40) == pytest.approx(184)


# Statistics against draws.


def test_statistics_agree_with_simulated_draws() -> None:
    """Horizon of 4,000 steps, one seed; tolerances are four standard errors."""
    moving = TokenSchedule(preset("curriculum", (4, 16, 64)))
    horizon = 4000
    counts = [moving.draw(11, step, 1, horizon).counts[0] for step in range(horizon)]
    mean = sum(counts) / horizon
    spread = 4 * (sum((k - mean) ** 2 for k in counts) / horizon) ** 0.5 / horizon**0.5
    assert expected_count(moving, horizon) == pytest.approx(mean, abs=spread)
    assert expected_cost(moving, horizon, lambda k: 10.0 + 2 * k) == pytest.approx(10 + 2 * mean, abs=2 * spread)
    seen = Counter(counts)
    assert mean_law(moving, horizon) == pytest.approx([seen[k] / horizon for k in (4, 16, 64)], abs=0.035)
    assert exposure(moving, horizon, 5) == pytest.approx((seen[16] + seen[64]) / horizon, abs=0.035)


def test_expected_max_grows_with_independent_ranks_which_is_why_draws_are_shared() -> None:
    """Closed form at two ranks; at eight ranks of TokenFLEX almost every step would wait for 256 tokens."""
    tokenflex = TokenSchedule(preset("tokenflex", PAPER))
    assert expected_max(tokenflex, 10, 1) == pytest.approx(184)
    assert expected_max(tokenflex, 10, 2) == pytest.approx(64 * 0.04 + 144 * 0.21 + 256 * 0.75)
    assert expected_max(tokenflex, 10, 8) > 255
    simulated = [max(tokenflex.draw(rank, step, 1, 1).counts[0] for rank in (1, 2)) for step in range(20_000)]
    assert sum(simulated) / 20_000 == pytest.approx(expected_max(tokenflex, 10, 2), rel=0.01)


@pytest.mark.parametrize("random_counts", [0, 1, 2, 3])
def test_sandwich_passes_agree_with_simulated_draws(random_counts: int) -> None:
    counts, weights = (4, 16, 36, 64, 144), (1, 1, 2, 4, 1)
    sandwich = schedule(counts=counts, weights=weights, mix="sandwich", random_counts=random_counts)
    seen = Counter(k for step in range(20_000) for k in sandwich.draw(2, step, 1, 20_000).counts)
    passes = expected_passes(sandwich, 20_000)
    assert sum(passes) == pytest.approx(2 + random_counts)
    assert passes == pytest.approx([seen[k] / 20_000 for k in sandwich.counts], abs=0.015)
    assert exposure(sandwich, 100, 144) == 1


def test_smallest_passes_agree_with_simulated_draws() -> None:
    smallest = schedule(counts=(4, 16, 144), weights=(1, 2, 2), mix="smallest")
    seen = Counter(k for step in range(20_000) for k in smallest.draw(2, step, 1, 20_000).counts)
    assert expected_passes(smallest, 100) == pytest.approx((1, 0.4, 0.4))
    assert expected_passes(smallest, 100) == pytest.approx([seen[k] / 20_000 for k in smallest.counts], abs=0.015)


def test_statistics_refuse_an_empty_horizon_and_no_ranks() -> None:
    tokenflex = TokenSchedule(preset("tokenflex", PAPER))
    with pytest.raises(ValueError, match="horizon must be at least 1 step, got 0"):
        expected_count(tokenflex, 0)
    with pytest.raises(ValueError, match="ranks must be at least 1, got 0"):
        expected_max(tokenflex, 10, 0)

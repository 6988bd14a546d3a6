"""Token curves: AUTC by hand, intervals that cover, regret and matrix over seeds."""

import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest
from tokendial.curve import (
    CurvePoint,
    ItemScores,
    autc,
    autc_weights,
    group_quality,
    paired_difference,
    regret,
    rises,
    served_matrix,
    token_curve,
)


def coins(rate: float, num: int, seed: int, counts: tuple[int, ...] = (4, 16)) -> ItemScores:
    draw = random.Random(seed)
    return ItemScores(
        [f"s{i}" for i in range(num)], {k: [float(draw.random() < rate) for _ in range(num)] for k in counts}
    )


def test_autc_is_the_trapezoid_over_log2_k():
    # log2: 2, 4, 8 → ((0.2 + 0.6) / 2 · 2 + (0.6 + 1.0) / 2 · 4) / 6
    assert autc({4: 0.2, 16: 0.6, 256: 1.0}) == pytest.approx((0.8 + 3.2) / 6)


def test_autc_of_one_count_is_its_quality():
    assert autc({16: CurvePoint(0.7, (0.6, 0.8), 10)}) == 0.7


def test_autc_of_a_constant_curve_is_the_constant():
    assert autc(dict.fromkeys((1, 3, 7, 100), 0.25)) == pytest.approx(0.25)
    assert math.fsum(autc_weights((1, 3, 7, 100))) == pytest.approx(1)


@pytest.mark.parametrize("counts", [[], [4, 4], [16, 4], [0, 4]], ids=str)
def test_a_grid_must_be_strictly_increasing_and_positive(counts: list[int]):
    with pytest.raises(ValueError, match="strictly increasing positive counts"):
        autc_weights(counts)


@pytest.mark.parametrize(
    ("sources", "quality", "groups", "message"),
    [
        ([], {4: []}, [], "at least one example"),
        (["a"], {}, [], "at least one example"),
        (["a", "b"], {4: [1.0]}, [], "1 values for 2 examples"),
        (["a"], {4: [1.5]}, [], r"leaves \[0, 1\]: 1.5"),
        (["a"], {4: [float("nan")]}, [], r"leaves \[0, 1\]: nan"),
        (["a"], {4: [1.0]}, ["x", "y"], "2 groups for 1 examples"),
    ],
)
def test_scores_that_are_not_a_table_are_refused(sources, quality, groups, message: str):
    with pytest.raises(ValueError, match=message):
        ItemScores(sources, quality, groups)


def test_the_curve_holds_means_and_numbers_of_examples():
    curve = token_curve(ItemScores(["a", "b"], {4: [0.0, 1.0], 16: [1.0, 1.0]}))
    assert curve.points[4].quality == 0.5
    assert curve.points[16] == CurvePoint(1.0, (1.0, 1.0), 2)
    assert curve.autc == pytest.approx(0.75)


def test_intervals_are_the_same_for_the_same_seed():
    scores = coins(0.6, 300, seed=1)
    assert token_curve(scores, seed=5) == token_curve(scores, seed=5)
    assert token_curve(scores, seed=5) != token_curve(scores, seed=6)


def test_intervals_have_the_binomial_width():
    low, high = token_curve(coins(0.5, 2000, seed=2)).points[4].ci
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 2000), rel=0.1)


def test_intervals_cover_the_truth_about_nineteen_times_in_twenty():
    # 200 experiments, 95 % coverage: fewer than 182 hits has probability below 0.005.
    hits = 0
    for seed in range(200):
        low, high = token_curve(coins(0.7, 200, seed, (4,)), seed=seed, resamples=400).points[4].ci
        hits += low <= 0.7 <= high
    assert 182 <= hits <= 199


def test_repeating_questions_about_one_image_does_not_narrow_the_interval():
    once = coins(0.5, 200, seed=3, counts=(4,))
    four = ItemScores([s for s in once.sources for _ in range(4)], {4: [v for v in once.quality[4] for _ in range(4)]})
    width = [high - low for low, high in (token_curve(x).points[4].ci for x in (once, four))]
    assert width[1] == pytest.approx(width[0], rel=0.01)


def test_group_quality_splits_by_question_type():
    scores = ItemScores(["a", "b", "c"], {4: [0.0, 1.0, 1.0]}, ["read", "count", "read"])
    assert group_quality(scores) == {"count": {4: 1.0}, "read": {4: 0.5}}


def test_a_paired_difference_is_narrower_than_two_separate_intervals():
    ours = coins(0.5, 1000, seed=4, counts=(4,))
    theirs = ItemScores(ours.sources, {4: [1.0 if i < 20 else v for i, v in enumerate(ours.quality[4])]})
    gap = paired_difference({0: theirs}, {0: ours}, count=4)
    assert 0 < gap.ci[0] < gap.mean < gap.ci[1] < 0.025
    assert gap.p < 0.01


def test_a_rise_is_paired_and_says_whether_it_is_surely_a_fall():
    most, few = coins(0.9, 200, 1), coins(0.5, 200, 2).quality[4]
    lost = [0.0 if i < 20 else value for i, value in enumerate(most.quality[4])]
    scores = ItemScores(most.sources, {4: few, 16: most.quality[4], 64: most.quality[4], 144: lost})
    found = rises(scores, (4, 16, 64, 144))
    assert [rise.before for rise in found.values()] == [4, 16, 64]
    assert found[16].ci[0] > 0
    assert (found[64].mean, found[64].ci, found[64].falls) == (0.0, (0.0, 0.0), False)
    assert found[144].mean == pytest.approx(np.mean(lost) - np.mean(most.quality[4]))
    assert found[144].falls
    assert rises(scores, (16,)) == {}


def test_equal_models_have_no_significant_difference():
    gap = paired_difference({0: coins(0.5, 500, 1)}, {0: coins(0.5, 500, 2)})
    assert gap.ci[0] < 0 < gap.ci[1]
    assert gap.p > 0.05


def test_the_difference_in_autc_is_the_difference_of_autcs():
    ours, theirs = coins(0.8, 100, 1, (1, 4, 9)), coins(0.4, 100, 2, (1, 4, 9))
    gap = paired_difference({3: ours}, {3: theirs})
    assert gap.mean == pytest.approx(token_curve(ours).autc - token_curve(theirs).autc)
    assert gap.per_seed == {3: pytest.approx(gap.mean)}


def test_models_that_answered_other_examples_are_not_paired():
    ours, theirs = coins(0.5, 10, 1), ItemScores([f"x{i}" for i in range(10)], {4: [0.0] * 10})
    with pytest.raises(ValueError, match="did not answer the same examples"):
        paired_difference({0: ours}, {0: theirs}, count=4)
    with pytest.raises(ValueError, match="no seed is in both"):
        paired_difference({0: ours}, {1: ours})
    with pytest.raises(ValueError, match=r"count 9 was not evaluated; the grid is \[4, 16\]"):
        paired_difference({0: ours}, {0: ours}, count=9)


def test_answers_to_different_data_of_the_same_names_are_not_paired():
    ours, other = replace(coins(0.5, 10, 1), data="a"), replace(coins(0.5, 10, 2), data="b")
    with pytest.raises(ValueError, match="seed 0: the two models were scored on different data"):
        paired_difference({0: ours}, {0: other})
    with pytest.raises(ValueError, match="seed 0: the two models have different evaluation grids"):
        paired_difference({0: ours}, {0: coins(0.5, 10, 2, (4,))})
    with pytest.raises(ValueError, match="scored on different data are not compared"):
        served_matrix({0: ours}, {4: {0: other}})
    # Scores written before they had a digest.
    assert paired_difference({0: ours}, {0: coins(0.5, 10, 1)}).mean == 0


def test_regret_is_what_the_twin_has_over_the_flexible_model():
    flexible = {0: ItemScores(["a", "b"], {4: [0.0, 1.0], 16: [1.0, 1.0]})}
    twins = {4: {0: ItemScores(["a", "b"], {4: [1.0, 1.0], 16: [0.0, 0.0]})}, 16: flexible}
    found = regret(flexible, twins)
    assert {count: gap.mean for count, gap in found.items()} == {4: 0.5, 16: 0.0}


def test_the_matrix_averages_over_seeds_with_twins_first():
    flexible = {seed: ItemScores(["a"], {4: [0.5], 16: [1.0]}) for seed in (0, 1)}
    twins = {4: {0: ItemScores(["a"], {4: [1.0], 16: [0.0]}), 1: ItemScores(["a"], {4: [0.5], 16: [0.0]})}}
    matrix = served_matrix(flexible, twins, kind="flops")
    assert (matrix.rows, matrix.counts, matrix.seeds, matrix.kind) == (("4", "flexible"), (4, 16), (0, 1), "flops")
    assert matrix.quality == ((0.75, 0.0), (0.5, 1.0))


def test_a_matrix_of_different_grids_or_seeds_is_refused():
    flexible = {0: coins(0.5, 5, 1)}
    with pytest.raises(ValueError, match="different grids are not compared"):
        served_matrix(flexible, {4: {0: coins(0.5, 5, 1, (4, 9))}})
    with pytest.raises(ValueError, match="needs the same seeds"):
        served_matrix(flexible, {4: {1: coins(0.5, 5, 1)}})


def test_a_full_test_set_is_resampled_within_a_second():
    """Of the processor, so that a busy machine does not decide."""
    scores = coins(0.5, 4096, seed=1, counts=(1, 4, 9, 16, 36, 64, 144))
    token_curve(scores, resamples=10)
    start = time.process_time()
    token_curve(scores)
    assert time.process_time() - start < 1

"""Searchers replayed on curves whose answers are known: what they spend, and that the kept figures are theirs."""

from pathlib import Path

import pytest
from tokendial.bench.curves import ALLOWANCE, CONTEST_SEEDS, LONG, Curves, Row, of_contest
from tokendial.bench.replay import (
    contest,
    kendall,
    order,
    rankings,
    replay_asha,
    replay_parzen,
    replay_random,
    replay_rows,
    spent_to_cover,
    spent_to_reach,
)

KEPT = Path(__file__).parents[2] / "benchmarks" / "search_curves.json"
COSTS = {4: 1.0, 16: 2.0, 144: 4.0}


def row(number: int, worth: float, part: str = "space", allowance: float = 1.0) -> Row:
    """A schedule whose curve rises evenly to its worth, so that every share of its allowance ranks it rightly."""
    points = tuple((share / 6, dict.fromkeys(COSTS, worth * share / 6)) for share in range(1, 7))
    return Row(
        part=part, label=str(number), overrides=(f"seed={number}",), seed=0, allowance=allowance, flops=1.0, steps=60,
        points=points,
    )  # fmt: skip


ROWS = [row(number, (number * 17 % 48) / 48) for number in range(48)]


def test_random_search_spends_a_trial_a_schedule_in_an_order_of_its_own() -> None:
    assert sorted(order(48, 3)) == list(range(48))
    assert order(48, 3) != order(48, 4)
    steps = replay_random(ROWS, 0)
    assert [step.spent for step in steps] == list(range(1, 49))
    best = max(row.autc for row in ROWS)
    assert spent_to_reach(steps, ROWS, best) == 1 + order(48, 0).index(max(range(48), key=lambda i: ROWS[i].autc))
    assert spent_to_reach(steps[:3], ROWS, 2.0) is None


@pytest.mark.skipif(not KEPT.exists(), reason="no curves were collected on this checkout")
def test_a_searcher_that_prunes_nothing_trains_the_whole_table_in_the_end() -> None:
    table = Curves.read(KEPT)
    rows = table.of("space")[:20]
    for steps in (replay_random(rows, 0), list(replay_parzen(rows, 0, ("autc", "cost"), table.costs))):
        assert sorted(steps[-1].finished) == list(range(20))
        assert steps[-1].spent == 20


def test_halving_finds_the_best_for_a_third_where_early_scores_rank_rightly() -> None:
    """200 orders: the mean over them of what it spends against a random search's, which is 24.5 trials."""
    best = max(row.autc for row in ROWS)
    spent = [spent_to_reach(replay_asha(ROWS, seed), ROWS, best) for seed in range(200)]
    random = [spent_to_reach(replay_random(ROWS, seed), ROWS, best) for seed in range(200)]
    assert None not in spent, "the best is never pruned"
    assert sum(filter(None, spent)) / sum(filter(None, random)) < 0.5
    whole = replay_asha(ROWS, 0)[-1]
    assert whole.spent < 24
    assert len(whole.finished) < 16


def test_hypervolume_is_covered_once_good_curves_are_finished() -> None:
    steps = replay_random(ROWS, 0)
    ninety = spent_to_cover(steps, ROWS, COSTS, 0.9)
    whole = spent_to_cover(steps, ROWS, COSTS, 1.0)
    assert ninety is not None
    assert whole is not None
    assert ninety < whole == spent_to_reach(steps, ROWS, max(row.autc for row in ROWS))


def test_kendalls_tau_compares_two_allowances() -> None:
    assert kendall([1, 2, 3, 4], [1, 2, 4, 3])[0] == pytest.approx(2 / 3)
    ranked = [row(n, n / 10, "rank", ALLOWANCE) for n in range(8)] + [row(n, n / 9, "rank", LONG) for n in range(8)]
    assert rankings(Curves(rows=ranked))["rank"]["tau"] == 1.0
    assert set(rankings(Curves(rows=ROWS))["tau_on_the_way"].values()) == {1.0}


def test_curves_are_kept_a_line_each_and_read_back(tmp_path: Path) -> None:
    table = Curves(rows=ROWS[:3], costs=COSTS, machine="this one")
    table.keep("replay", {"seeds": 1}, tmp_path / "curves.json")
    assert Curves.read(tmp_path / "curves.json") == table
    assert sum('"part"' in line for line in (tmp_path / "curves.json").read_text().splitlines()) == 3
    assert Curves.read(tmp_path / "absent.json") == Curves()


@pytest.mark.slow
@pytest.mark.skipif(not KEPT.exists(), reason="no curves were collected on this checkout")
def test_the_kept_figures_are_those_of_the_kept_curves() -> None:
    table = Curves.read(KEPT)
    if "replay" not in table.results:
        pytest.skip("the kept curves were not replayed yet")
    kept = table.results["replay"]
    again = replay_rows(table, kept["seeds"])
    for name in ("random", "asha"):
        assert again["spent_to_reach_it"][name] == kept["spent_to_reach_it"][name]
    assert again["pareto_95_percent"] == kept["pareto_95_percent"]
    assert again["found_over"] == kept["found_over"]


def test_the_found_schedule_is_better_where_its_interval_says_so() -> None:
    """Differences 0.1, 0.2, 0.3: mean 0.2, half width 4.303 x 0.1 / sqrt(3)."""
    worths = {"found": (0.5, 0.6, 0.7), "2:3:5": (0.4, 0.4, 0.4), "uniform": (0.49, 0.59, 0.6899)}
    rows = [
        row(0, worth, "versus").model_copy(update={"label": label, "seed": seed})
        for label, line in worths.items()
        for seed, worth in zip(CONTEST_SEEDS, line, strict=True)
    ]
    over = contest(Curves(rows=rows))["found_over"]
    assert over["2:3:5"]["by_seed"] == [0.1, 0.2, 0.3]
    assert (over["2:3:5"]["mean"], over["2:3:5"]["low"]) == (0.2, pytest.approx(-0.0484, abs=1e-4))
    assert (over["2:3:5"]["better"], over["uniform"]["better"]) == (False, True)
    assert contest(Curves(rows=ROWS)) == {}


def test_the_seed_that_chose_a_schedule_has_no_part_in_its_contest() -> None:
    table = Curves(rows=ROWS)
    assert not {wanted.seed for wanted in of_contest(table)} & {line.seed for line in table.of("space")}
    rows = [
        row(0, worth, "versus").model_copy(update={"label": label, "seed": seed})
        for label, line in {"found": (0.9, 0.5, 0.6), "2:3:5": (0.1, 0.5, 0.5)}.items()
        for seed, worth in enumerate(line)
    ]
    assert contest(Curves(rows=rows))["found_over"]["2:3:5"]["by_seed"] == [0.0, 0.1]

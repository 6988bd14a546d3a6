"""What a search's ledger and its trials' answers come to: groups over seeds, and how far each is behind the best."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokendial.curve import ItemScores, autc
from tokendial.scores import Scores
from tokendial.search.drive import plan_search
from tokendial.search.found import SearchResult, _behind, summarise
from tokendial.search.space import Candidate, label
from tokendial.search.trials import Book, Outcome

COUNTS: tuple[int, ...] = (1, 4, 16, 144)


def found(
    home: Path,
    answers: Mapping[tuple[str, ...], tuple[str, float] | None],
    lists: Sequence[str] = ("seed=0,1",),
    algorithm: str = "grid",
) -> SearchResult:
    """A finished search of trials by overrides: the source that each one's examples are of, and their quality; None is
    of one that failed."""
    plan = plan_search("digits.tiny", lists, algorithm=algorithm, budget="2e9", per_trial=True, name="it")
    book = Book(home / "trials.jsonl")
    home.mkdir()
    for number, (overrides, answer) in enumerate(answers.items()):
        run, group, seed = f"it.{number:03d}", label(overrides), int(overrides[-1].removeprefix("seed="))
        book.asked(number, Candidate({}, overrides), run)
        if answer is None:
            book.done(number, Outcome("FAILED", cause="on fire", group=group, seed=seed))
            continue
        source, quality = answer
        (home / run).mkdir()
        rows = {count: [quality] * 3 for count in COUNTS}
        sources = [f"{source}{index}" for index in range(3)]
        Scores("validation", ItemScores(sources, rows), [], {}, {}).write(home / run / "scores.json")
        curve, costs = dict.fromkeys(COUNTS, quality), {count: 1.0 + count for count in COUNTS}
        book.done(number, Outcome("FINISHED", {"autc": autc(curve)}, curve, costs, group=group, seed=seed))
    return summarise(plan, book, {count: 1.0 + count for count in COUNTS})


def test_groups_are_held_against_the_best_over_the_seeds_that_both_have(home: Path) -> None:
    answers = {("a=1", "seed=0"): ("x", 0.2), ("a=1", "seed=1"): ("x", 0.4), ("a=2", "seed=1"): ("x", 0.5)}
    result = found(home, answers, algorithm="random")
    assert [(group.label, group.seeds, group.autc) for group in result.groups] == [
        ("a=2", (1,), pytest.approx(0.5)),
        ("a=1", (0, 1), pytest.approx(0.3)),
    ]
    best, other = result.groups
    assert best.behind is None
    assert other.behind is not None
    assert other.behind.mean == pytest.approx(0.1)
    assert result.best == 2


def test_a_group_whose_bad_seeds_failed_is_not_the_best(home: Path) -> None:
    """Nor one that was not trained on every seed of the grid, as where a search is concluded early."""
    answers = {
        ("a=1", "seed=0"): ("x", 0.4),
        ("a=1", "seed=1"): ("x", 0.6),
        ("a=1", "seed=2"): ("x", 0.65),
        ("a=2", "seed=0"): None,
        ("a=2", "seed=1"): None,
        ("a=2", "seed=2"): ("x", 0.6),
        ("a=3", "seed=0"): ("x", 0.9),
    }
    result = found(home, answers, ("schedule=tokenflex,m3,uniform", "seed=0,1,2"))
    assert [(group.label, group.lacks) for group in result.groups] == [("a=1", ()), ("a=3", (1, 2)), ("a=2", (0, 1))]
    assert result.best == 2
    assert [round(group.behind.mean, 9) for group in result.groups[1:] if group.behind] == [-0.5, 0.05]


def test_what_all_trials_dominate_is_at_each_ones_own_price(home: Path) -> None:
    """The first is cheaper and worse: what it adds is below the price of the second's cheapest answer."""
    plan = plan_search("digits.tiny", ("seed=0,1",), budget="2e9", per_trial=True, objectives=("autc", "cost"))
    home.mkdir()
    book, base = Book(home / "trials.jsonl"), {4: 2.0, 16: 4.0}
    for number, (quality, costs) in enumerate(((0.5, {4: 2.0, 16: 3.0}), (1.0, {4: 4.0, 16: 8.0}))):
        book.asked(number, Candidate({}, (f"seed={number}",)), f"it.{number:03d}")
        (home / f"it.{number:03d}").mkdir()
        Scores("validation", ItemScores(["x"], {4: [0.5]}), [], {}, {}).write(home / f"it.{number:03d}" / "scores.json")
        curve = {4: quality, 16: quality}
        book.done(number, Outcome("FINISHED", {"autc": quality}, curve, costs, group=str(number), seed=number))
    result = summarise(plan, book, base)
    assert result.hypervolume == pytest.approx((0.5 + 1.0) / 2)
    assert [row.outcome.values["cost"] for row in result.trials] == [16.0, 4.0]
    assert result.front == (1,)


def test_trials_that_answered_other_examples_are_not_paired(home: Path) -> None:
    """As where a search is over the data itself."""
    answers = {("data.evaluation_seed=0", "seed=0"): ("x", 0.2), ("data.evaluation_seed=1", "seed=0"): ("y", 0.4)}
    assert [group.behind for group in found(home, answers).groups] == [None, None]


def test_trials_that_were_scored_on_data_of_another_digest_are_not_paired() -> None:
    one, other = (ItemScores(["x"], {4: [0.5]}, (), digest) for digest in ("a", "b"))
    assert _behind({0: one}, {0: other}) is None
    assert _behind({0: one}, {0: one}) is not None


def test_a_trial_that_was_trained_before_and_only_entered_now_says_nothing_of_overhead(home: Path) -> None:
    plan = plan_search("digits.tiny", ("seed=0,1",), algorithm="random", trials=2, budget="2e9", per_trial=True)
    book = Book(home / "trials.jsonl")
    home.mkdir()
    for number, (seconds, trained) in enumerate(((30.0, 10.0), (1.0, 10.0))):
        book.asked(number, Candidate({}, (f"seed={number}",)), f"it.{number:03d}")
        (home / f"it.{number:03d}").mkdir()
        Scores("validation", ItemScores(["x"], {4: [0.5]}), [], {}, {}).write(home / f"it.{number:03d}" / "scores.json")
        worth = Outcome("FINISHED", {"autc": 0.5}, {4: 0.5}, {4: 1.0}, seed=number)
        book.done(number, replace(worth, seconds=seconds, trained_seconds=trained))
    assert summarise(plan, book, {4: 1.0}).overhead_s == 20.0

"""What a search's ledger and its trials' answers come to: groups over seeds, and how far each is behind the best."""

from pathlib import Path

import pytest
from tokendial.curve import ItemScores, autc
from tokendial.scores import Scores
from tokendial.search.drive import plan_search
from tokendial.search.found import SearchResult, _behind, summarise
from tokendial.search.space import Candidate, label
from tokendial.search.trials import Book, Outcome

COUNTS: tuple[int, ...] = (1, 4, 16, 144)


def found(home: Path, answers: dict[tuple[str, ...], tuple[str, float]]) -> SearchResult:
    """A finished search of trials by overrides: the source that each one's examples are of, and their quality."""
    plan = plan_search("digits.tiny", ("seed=0,1",), budget="2e9", per_trial=True, name="it")
    book = Book(home / "trials.jsonl")
    for number, (overrides, (source, quality)) in enumerate(answers.items()):
        run = f"it.{number:03d}"
        (home / run).mkdir(parents=True)
        rows = {count: [quality] * 3 for count in COUNTS}
        sources = [f"{source}{index}" for index in range(3)]
        Scores("validation", ItemScores(sources, rows), [], {}, {}).write(home / run / "scores.json")
        book.asked(number, Candidate({}, overrides), run)
        curve = dict.fromkeys(COUNTS, quality)
        seed = int(overrides[-1].removeprefix("seed="))
        outcome = Outcome("FINISHED", {"autc": autc(curve)}, curve, group=label(overrides), seed=seed)
        book.done(number, outcome)
    return summarise(plan, book, {count: 1.0 + count for count in COUNTS})


def test_groups_are_held_against_the_best_over_the_seeds_that_both_have(home: Path) -> None:
    answers = {("a=1", "seed=0"): ("x", 0.2), ("a=1", "seed=1"): ("x", 0.4), ("a=2", "seed=1"): ("x", 0.5)}
    result = found(home, answers)
    assert [(group.label, group.seeds, group.autc) for group in result.groups] == [
        ("a=2", (1,), pytest.approx(0.5)),
        ("a=1", (0, 1), pytest.approx(0.3)),
    ]
    best, other = result.groups
    assert best.behind is None
    assert other.behind is not None
    assert other.behind.mean == pytest.approx(0.1)
    assert result.best == 2


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
        outcome = Outcome("FINISHED", {"autc": 0.5}, {4: 0.5}, seconds=seconds, trained_seconds=trained, seed=number)
        book.done(number, outcome)
    assert summarise(plan, book, {4: 1.0}).overhead_s == 20.0

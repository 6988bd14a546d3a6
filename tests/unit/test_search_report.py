"""The page of a search: what it shows of trials whose worth is known, and what parameters explain."""

from dataclasses import replace
from pathlib import Path

import pytest
from tokendial.report.search import curves_png, importance, ranked, search_html
from tokendial.search.domains import Choice, LogUniform, Uniform
from tokendial.search.found import Group, SearchResult, TrialRow
from tokendial.search.trials import Outcome

SPACE = {
    "schedule": Choice(("tokenflex", "m3")),
    "optimizer.lr": LogUniform(1e-4, 1e-1),
    "optimizer.weight_decay": Uniform(0, 1),
}
COSTS = {4: 1e7, 16: 2e7, 144: 6e7}


def trial(number: int) -> TrialRow:
    """Worth follows from the learning rate alone; every fourth trial fails."""
    rate = round(1e-4 * 2**number, 6)
    worth = (number + 1) / 10
    chosen = {"schedule": ("tokenflex", "m3")[number % 2], "optimizer.lr": rate}
    chosen["optimizer.weight_decay"] = (number * 3 % 8) / 8
    failed = number % 4 == 3
    curve = {} if failed else {4: worth / 2, 16: worth, 144: worth}
    outcome = Outcome(
        "FAILED" if failed else "FINISHED", {} if failed else {"autc": worth}, curve, flops=1e12,
        cause="<script>alert(1)</script>" if failed else None, seed=0, group=str(number),
    )  # fmt: skip
    overrides = tuple(f"{name}={value}" for name, value in chosen.items())
    return TrialRow(number=number, run=f"it.{number:03d}", overrides=overrides, chosen=chosen, outcome=outcome)


ROWS = tuple(trial(number) for number in range(8))
RESULT = SearchResult(
    name="it", experiment="digits", algorithm="random", objectives=("autc",), trials=ROWS,
    groups=(Group(label="lr", trials=(6,), seeds=(0,), values={"autc": 0.7}, autc=0.7, autc_ci=(0.6, 0.8)),),
    best=6, front=(6,), costs=COSTS, hypervolume=0.6, flops_per_trial=1e12, flops=8e12, tower_flops=2e12,
    accounting=0.004, utilisation=0.85, overhead_s=12.0, wall_seconds=900.0,
)  # fmt: skip


def test_the_page_has_every_part_and_works_offline() -> None:
    page = search_html(RESULT, SPACE)
    for part in ("Groups over seeds", "Curves", "Pareto front", "Parameters", "What matters", "Trials", "Compute"):
        assert f"<h2>{part}</h2>" in page
    assert "<script src=" not in page
    assert "within 0.40 %" in page
    assert "<script>alert" not in page
    assert "failed: &lt;script&gt;" in page


def test_the_page_of_a_search_without_a_finished_trial_explains_why() -> None:
    failed = RESULT.model_copy(update={"trials": (ROWS[3],), "groups": (), "best": None, "hypervolume": None})
    page = search_html(failed, SPACE)
    assert "Pareto front" not in page
    assert "failed: &lt;script&gt;" in page


def test_the_front_of_several_objectives_is_named() -> None:
    rows = tuple(row.model_copy(update={"outcome": both(row.outcome)}) for row in ROWS)
    several = RESULT.model_copy(update={"objectives": ("autc", "cost"), "trials": rows, "front": (4, 6)})
    assert "no other beats in both of autc and cost: 4, 6" in search_html(several, SPACE)
    assert "no other beats" not in search_html(RESULT, SPACE)


def both(outcome: Outcome) -> Outcome:
    return replace(outcome, values={**outcome.values, "cost": 1e7} if outcome.values else {})


def test_trials_are_ranked_by_the_first_objective() -> None:
    assert [row.number for row in ranked(RESULT)] == [6, 5, 4, 2, 1, 0]


def test_what_decides_explains_all_of_the_variance() -> None:
    shares = importance(RESULT, SPACE)
    assert next(iter(shares)) == "optimizer.lr"
    assert shares["optimizer.lr"] == pytest.approx(1.0)
    assert shares["schedule"] < 0.2


def test_the_curves_are_drawn_as_png(tmp_path: Path) -> None:
    path = curves_png(RESULT, tmp_path / "figures" / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_result_is_one_line_of_json_that_reads_back() -> None:
    assert SearchResult.model_validate_json(RESULT.model_dump_json()) == RESULT

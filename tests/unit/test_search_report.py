"""The page of a search: what it shows of trials whose worth is known, and what parameters explain."""

import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from tokendial.report.search import curves_png, front_figure, importance, ranked, search_html
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
        "FAILED" if failed else "FINISHED", {"autc": worth} if curve else {}, curve, COSTS if curve else {}, flops=1e12,
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


def test_a_parameter_with_many_options_explains_nothing_of_noise() -> None:
    """200 draws of worths that no parameter decides; the standard error of each mean is under 0.015."""
    space, draws = {"six": Choice(tuple(range(6))), "number": Uniform(0, 1)}, random.Random(0)
    shares: dict[str, list[float]] = {"six": [], "number": []}
    for _ in range(200):
        rows = []
        for row in [ROWS[0]] * 16:
            chosen = {"six": draws.randrange(6), "number": draws.random()}
            outcome = replace(row.outcome, values={"autc": draws.random()})
            rows.append(row.model_copy(update={"chosen": chosen, "outcome": outcome}))
        for name, share in importance(RESULT.model_copy(update={"trials": tuple(rows)}), space).items():
            shares[name].append(share)
    assert all(fmean(line) < 0.1 for line in shares.values())


def test_a_list_of_which_each_option_was_tried_once_explains_nothing() -> None:
    assert importance(RESULT, {"optimizer.lr": Choice(tuple(row.chosen["optimizer.lr"] for row in ROWS))}) == {
        "optimizer.lr": 0.0
    }


def test_the_front_has_every_answer_at_its_own_price() -> None:
    """The first model's answers are as good as the last one's, and three times as dear."""
    outcome = replace(ROWS[6].outcome, costs={count: 3 * cost for count, cost in COSTS.items()})
    dear = ROWS[0].model_copy(update={"outcome": outcome})
    both, front = front_figure(RESULT.model_copy(update={"trials": (dear, ROWS[6])})).to_dict()["data"]
    assert sorted(both["x"]) == sorted([*COSTS.values(), *(3 * cost for cost in COSTS.values())])
    assert front["y"] == [0.35, 0.7, 0.7, 0.7, 0.7, 0.7]


def test_seeds_that_a_group_lacks_are_told() -> None:
    group = RESULT.groups[0].model_copy(update={"seeds": (0, 2), "lacks": (1,)})
    assert "0,2 (not 1)" in search_html(RESULT.model_copy(update={"groups": (group,)}), SPACE)


def test_the_curves_are_drawn_as_png(tmp_path: Path) -> None:
    path = curves_png(RESULT, tmp_path / "figures" / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_result_is_one_line_of_json_that_reads_back() -> None:
    assert SearchResult.model_validate_json(RESULT.model_dump_json()) == RESULT

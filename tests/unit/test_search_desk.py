"""The desk and its ledger: whatever line a search is cut at, it goes on as if it had not been."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokendial.experiments import ConfigError
from tokendial.resolve import from_document
from tokendial.search.desk import Desk, TrialOrder, check_candidates
from tokendial.search.drive import plan_search
from tokendial.search.found import SearchResult, read_plan, summarise
from tokendial.search.plan import SearchPlan
from tokendial.search.trials import Book, Outcome, Session

# Constant laws, whose draws cost nothing to simulate: these tests are about order, not schedules.
LISTS = ("schedule=tokenflex,uniform,m3,fixed", "optimizer.projector_lr_factor=0.3,0.5,0.7,0.9,1.1,1.5,2.0,3.0")


@pytest.fixture(autouse=True)
def _home(home: Path) -> None:
    del home


def plan(algorithm: str, trials: int | None = 12, **options: Any) -> SearchPlan:
    return plan_search(
        "digits.tiny", LISTS, algorithm=algorithm, trials=trials, budget="2e9", per_trial=True, **options
    )


def outcome(order: TrialOrder) -> Outcome:
    """A worth that follows from the candidate; every fifth trial fails."""
    if order.number % 5 == 4:
        return Outcome("FAILED", cause="on fire")
    worth = order.config["optimizer"]["projector_lr_factor"] / 4
    curve = {1: worth / 2, 4: worth, 16: worth, 144: worth}
    return Outcome("FINISHED", values={"autc": worth}, curve=curve, flops=2e9)


def work(made: SearchPlan, folder: Path) -> list[str]:
    """Run a search to its end, one trial at a time, and return its ledger without times."""
    folder.mkdir(exist_ok=True)
    desk = Desk(made, folder)
    while (order := desk.ask()) is not None:
        for rung, share in enumerate(order.rungs):
            if not desk.judge(order.number, share, (order.number * 7 % 5) / 5 + rung / 10):
                stopped = desk.book.trials[order.number].rungs[-1].share * 2e9
                desk.tell(order.number, Outcome("PRUNED", values={"autc": 0.1}, curve={1: 0.1}, flops=stopped))
                break
        else:
            desk.tell(order.number, outcome(order))
    assert desk.finished
    return lines(folder)


def lines(folder: Path) -> list[str]:
    events = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return [json.dumps({name: value for name, value in event.items() if name != "time"}) for event in events]


@pytest.mark.parametrize("algorithm", ["random", "optuna", "asha"])
def test_a_search_cut_at_any_line_ends_with_the_same_trials_each_once(algorithm: str, tmp_path: Path) -> None:
    made = plan(algorithm)
    whole = work(made, tmp_path / "whole")
    text = (tmp_path / "whole" / "trials.jsonl").read_text().splitlines(keepends=True)
    assert len(text) >= 24
    for cut in range(1, len(text), 2):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        # Half of the next line was being written when the process was killed.
        torn = text[cut][: len(text[cut]) // 2]
        (folder / "trials.jsonl").write_text("".join(text[:cut]) + torn)
        assert work(made, folder) == whole, f"cut at line {cut}"


def test_the_steps_of_the_tower_that_trials_share_count_as_work(home: Path) -> None:
    made = plan("random", trials=2)
    home.mkdir(exist_ok=True)
    desk = Desk(made, home)
    while (order := desk.ask()) is not None:
        desk.tell(order.number, Outcome("FAILED", cause="on fire"))
    desk.book.worked(Session(seconds=100.0, slots=2, trained_seconds=120.0))
    tower = home / f"{made.name}.tower-1"
    tower.mkdir()
    (tower / "result.json").write_text(json.dumps({"flops": 5.0, "seconds": 40.0}))
    found = summarise(made, desk.book, {1: 1.0})
    assert found.utilisation == pytest.approx(0.8)
    assert found.tower_flops == 5.0


def test_trials_that_were_asked_for_and_not_told_come_first(tmp_path: Path) -> None:
    made = plan("random")
    first = Desk(made, tmp_path)
    asked = [first.ask(), first.ask()]
    again = Desk(made, tmp_path)
    assert [again.ask(), again.ask()] == asked
    third = again.ask()
    assert third is not None
    assert third.number == 2
    assert sorted(Book(tmp_path / "trials.jsonl").trials) == [0, 1, 2]


def test_the_best_of_a_search_that_goes_on_is_that_of_its_whole_ledger(tmp_path: Path) -> None:
    desk = Desk(plan("random", trials=3), tmp_path)
    for ended in (
        Outcome("FINISHED", values={"autc": 0.4}),
        Outcome("FINISHED", values={"autc": 0.2}),
        Outcome("PRUNED", values={"autc": 0.9}),
    ):
        order = desk.ask()
        assert order is not None
        desk.tell(order.number, ended)
        assert Book(tmp_path / "trials.jsonl").best("autc") == 0.4


def test_a_closed_desk_hands_out_nothing(tmp_path: Path) -> None:
    desk = Desk(plan("random"), tmp_path)
    desk.closed = True
    assert desk.ask() is None
    assert not desk.book.trials


def test_trials_have_equal_compute_whatever_their_schedule(tmp_path: Path) -> None:
    """Each ends within a step of its allowance; on a budget of some hundred steps that is under two percent."""
    from tokendial.search.trial import allowance_spent

    made = plan_search("digits.tiny", ("global_batch=4",), algorithm="random", trials=6, budget="2e10", per_trial=True)
    desk, spent = Desk(made, tmp_path), []
    while (order := desk.ask()) is not None:
        spent.append(allowance_spent(from_document(order.config))[-1])
        assert order.config["budget"]["flops"] == 2e10
        assert order.config["evaluation"]["split"] == "validation"
        assert order.tower_run is not None
        assert [stage["objective"] for stage in order.config["stages"]] == ["language", "language"]
    assert len({round(flops) for flops in spent}) > 3
    assert all(0.98 <= flops / 2e10 <= 1 for flops in spent)


def test_trials_that_would_warm_the_same_tower_share_it(tmp_path: Path) -> None:
    made = plan_search("digits.tiny", ("schedule=tokenflex,m3", "seed=0,1"))
    desk, towers = Desk(made, tmp_path), []
    while (order := desk.ask()) is not None:
        towers.append(order.tower_run)
    assert len(towers) == 4
    assert towers[0] == towers[2] != towers[1] == towers[3]


def test_trials_share_their_tower_where_compute_bounds_the_run(tmp_path: Path) -> None:
    """A schedule that is cheap has more steps for the same FLOPs; its tower must not be warmed for longer."""
    made = plan_search("digits.tiny", ("schedule=tokenflex,m3,uniform", "budget.flops=2e10"))
    desk, towers = Desk(made, tmp_path), []
    while (order := desk.ask()) is not None:
        assert order.tower_config is not None
        towers.append((order.tower_run, order.tower_config["budget"]["steps"]))
    assert len(set(towers)) == 1


def test_only_the_stages_that_come_first_are_shared(tmp_path: Path) -> None:
    """A tower that is warmed again later is warmed there, by each trial."""
    words = "ABCD"
    kinds = ("tower", "language", "tower", "language")
    stages = [
        {"name": name, "share": share, "objective": kind}
        for name, kind, share in zip(words, kinds, (100, 200, 100, 600), strict=True)
    ]
    made = plan_search("digits.tiny", ("seed=0,1", f"stages={json.dumps(stages)}", "budget.steps=1000"))
    order = Desk(made, tmp_path).ask()
    assert order is not None
    assert order.tower_config is not None
    assert [stage["name"] for stage in order.tower_config["stages"]] == ["A", "hand_over"]
    assert order.tower_config["budget"]["steps"] == 101
    assert [(stage["name"], stage["share"]) for stage in order.config["stages"]] == [("B", 200), ("C", 100), ("D", 600)]
    assert order.config["budget"]["horizon"] == pytest.approx(900, abs=1)


def test_a_trial_leaves_the_examples_that_its_experiment_asks_for(tmp_path: Path) -> None:
    """They are the golden prompts of a version that is promoted from a search."""
    order = Desk(plan("asha"), tmp_path).ask()
    assert order is not None
    assert order.config["evaluation"]["table_examples"] == 4


def test_trials_are_grouped_by_all_but_their_seed(tmp_path: Path) -> None:
    """Also by what may change while a run goes on, and so is no part of its name."""
    lists = ("zero.stage=0,1", "schedule=tokenflex,m3", "seed=0,1")
    desk, groups = Desk(plan_search("digits.tiny", lists, budget="2e9", per_trial=True), tmp_path), []
    while (order := desk.ask()) is not None:
        groups.append(order.group)
    assert groups[::2] == groups[1::2]
    assert len(set(groups)) == 4
    assert groups[0] == "zero.stage=0 schedule=tokenflex"


def test_a_judgement_stands_and_rungs_are_compute(tmp_path: Path) -> None:
    made = plan("asha")
    desk = Desk(made, tmp_path)
    orders = [desk.ask() for _ in range(4)]
    first = made.rungs[0]
    assert [desk.judge(number, first, score) for number, score in ((0, 0.5), (1, 0.6), (2, 0.4))] == [True, True, False]
    assert not desk.judge(2, 0.9, 0.99)
    assert desk.judge(3, first / 3, 0.0)
    assert desk.judge(3, first, 0.9)
    assert all(order is not None and order.rungs == made.rungs for order in orders)


def test_a_grid_with_an_impossible_combination_is_refused_before_it_starts() -> None:
    with pytest.raises(ConfigError, match=r"combination schedule\.counts=\[4, 500\] cannot be a run: "):
        plan_search("digits.tiny", ("schedule=tokenflex", "schedule.counts=[4,16],[4,500]"))
    with pytest.raises(ConfigError, match="no admissible candidate in the space; last: "):
        plan_search("digits.tiny", ("schedule.counts=[500],[600]",), algorithm="random")
    with pytest.raises(ConfigError, match="less than one step"):
        plan_search("digits.tiny", ("seed=0,1",), budget="10", per_trial=True)


def test_a_small_space_is_searched_to_its_last_candidate(tmp_path: Path) -> None:
    lists = ("schedule=tokenflex,m3", "seed=" + ",".join(map(str, range(12))))
    made = plan_search("digits.tiny", lists, algorithm="random", trials=24, budget="2e9", per_trial=True)
    ledger = work(made, tmp_path)
    assert len({json.loads(line)["run"] for line in ledger if '"asked"' in line}) == 24
    with pytest.raises(ConfigError, match="--trials 25 is not in 1 to 24, the combinations of the space"):
        plan_search("digits.tiny", lists, algorithm="random", trials=25, budget="2e9", per_trial=True)
    assert plan_search("digits.tiny", ("seed=0,1,2",), algorithm="random").trials == 3
    impossible = ("schedule=tokenflex", "schedule.counts=[4,16],[4,144],[4,500]")
    with pytest.raises(ConfigError, match=r"--trials 3 is more than the 2 candidates that can be a run; "):
        plan_search("digits.tiny", impossible, algorithm="random", budget="2e9", per_trial=True)


def test_plans_are_read_back_and_wall_time_needs_room_to_start(tmp_path: Path) -> None:
    made = plan("optuna", objectives=("autc", "cost"))
    (tmp_path / "plan.json").write_text(made.model_dump_json())
    assert read_plan(tmp_path) == made
    for name, read in (("plan.json", read_plan), ("result.json", SearchResult.read)):
        (tmp_path / name).write_text('{"name": "it"')
        with pytest.raises(ConfigError, match=f"{name} is broken; repair it or move the folder away"):
            read(tmp_path)
    check_candidates(made)
    with pytest.raises(ConfigError, match="--budget '1e999' is not an amount"):
        plan_search("digits.tiny", ("seed=0,1",), budget="1e999")
    with pytest.raises(ConfigError, match="--per-trial goes with --budget"):
        plan_search("digits.tiny", ("seed=0,1",), per_trial=True)
    with pytest.raises(ConfigError, match="--limit inf is not a number of seconds"):
        plan_search("digits.tiny", ("seed=0,1",), limit_s=float("inf"))
    with pytest.raises(ConfigError, match="starting and scoring one takes about 25 s"):
        plan_search("digits.tiny", ("seed=0,1",), budget="20s", per_trial=True)

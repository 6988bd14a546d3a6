"""A search that is asked for again: continued, grown, concluded, retried, moved, or refused as another one."""

import json
from pathlib import Path
from typing import Any

import language_folders
import pytest
from tokendial import api, runs
from tokendial.curve import ItemScores
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.identity import Identity
from tokendial.resolve import from_document
from tokendial.scores import Scores
from tokendial.search.desk import Desk, TrialOrder
from tokendial.search.drive import plan_search, search
from tokendial.search.found import read_found, read_plan, summarise
from tokendial.search.plan import SearchPlan, fingerprint, refuse_changes
from tokendial.search.state import State
from tokendial.search.trials import Book, Outcome
from tokendial.train.driver import data_digests

LISTS = ("schedule=tokenflex,uniform,m3,fixed", "optimizer.projector_lr_factor=0.3,0.5,0.7,0.9,1.1,1.5,2.0,3.0")


@pytest.fixture(autouse=True)
def _home(home: Path) -> None:
    del home


def plan(algorithm: str, trials: int | None = 12, **options: Any) -> SearchPlan:
    return plan_search(
        "digits.tiny", LISTS, algorithm=algorithm, trials=trials, budget="2e9", per_trial=True, **options
    )


def tell(desk: Desk, order: TrialOrder | None) -> None:
    """End a trial, better than those before it and with the answers that its group is made of."""
    assert order is not None
    folder = runs.home() / order.run
    folder.mkdir(parents=True)
    Scores("validation", ItemScores(["x"], {4: [0.5]}), [], {}, {}).write(folder / "scores.json")
    worth, group = (order.number + 1) / 10, str(order.number)
    desk.tell(order.number, Outcome("FINISHED", {"autc": worth}, {4: worth}, {4: 1e6}, group=group, seed=0))


def finish(desk: Desk, number: int) -> None:
    for _ in range(number):
        tell(desk, desk.ask())


def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> None:
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr("tokendial.train.ray_trainer.connect", connect)
    monkeypatch.setattr("tokendial.tracking.searches.SearchRecord._reach", lambda record, act: None)


def test_a_changed_space_is_refused_by_name() -> None:
    before = plan("random", name="it")
    after = plan_search("digits.tiny", ("schedule=tokenflex,m3",), name="it", budget="2e9", per_trial=True)
    with pytest.raises(ConfigError, match=r"search 'it' is another one \(algorithm: random → grid; space: "):
        refuse_changes(before, after)
    refuse_changes(before, plan("random", trials=30, name="it"))
    assert fingerprint(before) == fingerprint(plan("random", trials=30, name="it"))
    assert plan("random").name == plan("random", trials=30).name != plan("random", seed=1).name


def test_a_search_goes_on_where_its_data_was_moved_to_but_not_over_other_data(home: Path, tmp_path: Path) -> None:
    for name, number in (("here", 60), ("there", 60), ("other", 61)):
        language_folders.pictures(tmp_path / name, number)

    def asked(name: str) -> SearchPlan:
        lists = (f"data.path={tmp_path / name}", "data.repeats=1", "seed=0,1")
        return plan_search("captions.tiny", lists, budget="2e9", per_trial=True, name="it")

    made = asked("here")
    (home / "it").mkdir(parents=True)
    (home / "it" / "plan.json").write_text(made.model_dump_json())
    order = Desk(made, home / "it").ask()
    assert order is not None
    config = from_document(order.config)
    run = runs.create(order.run, config, Identity(user="ada"))
    (run.folder / "tracking").mkdir()
    told = [{"split": split, "digest": digest} for split, digest in data_digests(config).items()]
    (run.folder / "tracking" / "opening.json").write_text(json.dumps({"datasets": told}))
    assert asked("there").base["data"]["path"] == str(tmp_path / "there")
    with pytest.raises(ConfigError, match=r"run 'it\.000' was trained on other data \(data\.path .*here → .*other\)"):
        asked("other")


def test_fewer_trials_than_have_ended_are_refused(home: Path) -> None:
    made = plan("random", trials=12, name="it")
    (home / "it").mkdir(parents=True)
    (home / "it" / "plan.json").write_text(made.model_dump_json())
    finish(Desk(made, home / "it"), 6)
    with pytest.raises(ConfigError, match="6 trials of search 'it' have ended, and --trials 5 is fewer; leave it out"):
        plan("random", trials=5, name="it")
    assert plan("random", trials=6, name="it").trials == 6
    assert plan("random", trials=None, name="it").trials == 12
    assert plan("random", trials=20, name="it").trials == 20
    assert plan("random", trials=5, name="it", new=True).name == "it-2"


@pytest.mark.parametrize(("trials", "left"), [(3, []), (4, [3]), (5, [3, 4]), (6, [3, 4, 5])])
def test_a_search_is_concluded_by_as_many_trials_as_have_ended_or_more(
    trials: int, left: list[int], tmp_path: Path
) -> None:
    """Three of five that were asked for have ended."""
    made = plan("random", trials=12)
    first = Desk(made, tmp_path)
    orders = [first.ask() for _ in range(5)]
    for order in orders[:3]:
        tell(first, order)
    desk, found = Desk(made.model_copy(update={"trials": trials}), tmp_path), []
    while (order := desk.ask()) is not None:
        found.append(order.number)
    assert found == left
    assert desk.finished == (not left)


def test_a_grid_may_be_concluded_before_its_last_combination() -> None:
    made = plan_search("digits.tiny", ("schedule=tokenflex,m3", "seed=0,1"), trials=3, budget="2e9", per_trial=True)
    assert (made.algorithm, made.trials) == ("grid", 3)


def test_trials_that_failed_run_again_where_that_is_asked_for(tmp_path: Path) -> None:
    made = plan("random", trials=4)
    before = Desk(made, tmp_path)
    finish(before, 2)
    failed = before.ask()
    before.tell(2, Outcome("FAILED", cause="on fire"))
    finish(before, 1)
    desk = Desk(made, tmp_path)
    assert desk.finished
    desk.retry()
    assert not desk.finished
    assert (desk.ask(), desk.ask()) == (failed, None)
    desk.tell(2, Outcome("FINISHED", values={"autc": 0.9}))
    again = Book(tmp_path / "trials.jsonl")
    assert [trial.number for trial, _ in again.ended] == [0, 1, 3, 2]
    assert again.best("autc") == 0.9


def test_a_search_that_grew_and_was_cut_does_not_pass_for_what_it_was(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut after its last trial's end and before its result was written anew."""
    no_ray(monkeypatch)
    (home / "it").mkdir(parents=True)
    small = plan("random", trials=2, name="it")
    finish(Desk(small, home / "it"), 2)
    assert len(search(small).trials) == 2
    assert read_found("it").best == 1
    grown = plan("random", trials=4, name="it")
    with pytest.raises(AssertionError, match="nothing is to be trained"):
        search(grown)
    with pytest.raises(ConfigError, match="2 of 4 trials are done; its command continues it, or with --trials 2 ends"):
        read_found("it")
    finish(Desk(grown, home / "it"), 2)
    assert len(search(grown).trials) == 4
    assert read_found("it").best == 3
    assert State.read(home / "it").status == "FINISHED"


def test_a_search_is_concluded_without_a_cluster(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_ray(monkeypatch)
    made = plan("random", trials=12, name="it")
    (home / "it").mkdir(parents=True)
    finish(Desk(made, home / "it"), 3)
    (home / "it" / "plan.json").write_text(made.model_dump_json())
    found = search(plan("random", trials=3, name="it"))
    assert (len(found.trials), found.best) == (3, 2)
    assert search(plan("random", trials=None, name="it")) == found


def test_a_search_ends_where_its_space_has_no_further_candidate(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where most combinations of a space cannot be a run, which only shows once the others are used up."""
    no_ray(monkeypatch)
    made = plan("random", trials=8, name="it")

    def run(desk: Desk, *_: Any) -> ConfigError:
        finish(desk, 3)
        return ConfigError("no admissible candidate in 200 suggestions for trial 3")

    monkeypatch.setattr("tokendial.search.tuning.run", run)
    monkeypatch.setattr("tokendial.search.drive._slots_of", lambda plan, config: 1)
    monkeypatch.setattr("tokendial.train.ray_trainer.connect", lambda: None)
    found = search(made)
    assert (len(found.trials), found.exhausted) == (3, "no admissible candidate in 200 suggestions for trial 3")
    no_ray(monkeypatch)
    assert search(plan("random", trials=8, name="it")) == found
    assert read_plan(home / "it").trials == 3


def test_a_new_search_has_an_allowance_of_its_own(home: Path) -> None:
    made = plan("random", name="it")
    (home / "it").mkdir(parents=True)
    (home / "it" / "plan.json").write_text(made.model_copy(update={"flops": 3e9}).model_dump_json())
    assert plan("random", name="it").flops == 3e9
    assert plan("random", name="it", new=True).flops == 2e9


def test_a_search_without_a_finished_trial_fails_each_time_it_is_asked_for(home: Path) -> None:
    made = plan("random", trials=2, name="it")
    folder = home / "it"
    folder.mkdir(parents=True)
    desk = Desk(made, folder)
    while (order := desk.ask()) is not None:
        desk.tell(order.number, Outcome("FAILED", cause="on fire"))
    (folder / "result.json").write_text(summarise(made, desk.book, {1: 1.0}).model_dump_json())
    with pytest.raises(WorkFailed, match="all 2 trials failed; first: on fire"):
        search(made)


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (ConnectionError("nobody is there"), "FAILED")]
)
def test_a_search_that_ends_before_it_has_a_cluster_says_why(
    error: BaseException, status: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> None:
        raise error

    monkeypatch.setattr("tokendial.train.ray_trainer.connect", connect)
    with pytest.raises(type(error)) as found:
        search(plan("random", trials=2, name="it"))
    assert found.value is error
    assert State.read(home / "it").status == status
    said = api.logs("it")["it"].splitlines()
    assert said[0].endswith("preparing")
    assert said[-1].endswith(f"{type(error).__name__}: {error}")

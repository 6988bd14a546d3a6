"""What a trial that did not finish has cost: read from its run's journal, so that a search counts it too."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import NodeID
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tokendial import runs
from tokendial.identity import Identity
from tokendial.resolve import from_document
from tokendial.search import tuning
from tokendial.search.desk import Desk, TrialOrder
from tokendial.search.drive import plan_search
from tokendial.search.found import read_plan
from tokendial.search.trial import Watch, allowance_spent, pruned, run_trial
from tokendial.search.trials import Outcome
from tokendial.search.tuning import Suggestions

SECONDS = {"train/step_seconds": 0.5}
CURVE = {f"validation/quality/k{count}": 0.25 for count in (1, 4, 9, 16, 36, 64, 144)}


@pytest.fixture
def order(home: Path, tmp_path: Path) -> TrialOrder:
    """A trial without a tower whose run was begun under another seed, so that it cannot go on."""
    del home
    plan = plan_search("digits.tiny", ("schedule=tokenflex",), algorithm="random", budget="2e9", per_trial=True)
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    found = Desk(plan, tmp_path).ask()
    assert found is not None
    runs.create(found.run, from_document({**found.config, "seed": 5}), Identity(user="ada"))
    return replace(found, tower_run=None, costs=dict.fromkeys(found.costs, 1.0))


def journal(order: TrialOrder, rows: Mapping[int, Mapping[str, float]]) -> None:
    folder = runs.home() / order.run / "tracking"
    folder.mkdir()
    lines = (json.dumps([0, step, values]) + "\n" for step, values in rows.items())
    (folder / "metrics.jsonl").write_text("".join(lines))


def test_a_failed_trial_has_spent_what_its_run_journalled(order: TrialOrder) -> None:
    journal(order, {1: SECONDS, 2: SECONDS, 3: SECONDS})
    outcome = run_trial(order, Watch())
    assert outcome.status == "FAILED"
    assert outcome.cause is not None
    assert "has another configuration (seed: 5 → 0)" in outcome.cause
    assert (outcome.steps, outcome.trained_seconds) == (3, 1.5)
    assert outcome.flops == allowance_spent(from_document(order.config))[3] > 0


def test_a_trial_that_failed_before_its_first_step_has_spent_nothing(order: TrialOrder) -> None:
    outcome = run_trial(order, Watch())
    assert (outcome.status, outcome.steps, outcome.flops, outcome.trained_seconds) == ("FAILED", 0, 0.0, 0.0)


def test_a_trial_whose_process_died_has_spent_what_its_run_journalled(order: TrialOrder, tmp_path: Path) -> None:
    desk = Desk(read_plan(tmp_path), tmp_path)
    told: list[tuple[int, Outcome]] = []
    suggestions = Suggestions(desk, None, lambda number, place: None, lambda *ended: told.append(ended))
    suggestions.suggest("a")
    journal(order, {1: SECONDS, 2: SECONDS})
    suggestions.on_trial_complete("a", error=True)
    ((number, outcome),) = told
    assert desk.book.trials[number].outcome == outcome
    assert (outcome.status, outcome.cause) == ("FAILED", "the process of the trial died")
    assert (outcome.steps, outcome.trained_seconds, outcome.seed) == (2, 1.0, 0)
    assert outcome.flops == allowance_spent(from_document(order.config))[2] > 0


def test_a_trial_hangs_once_it_has_workers_that_show_nothing() -> None:
    watch = Watch()
    for waits in ({"stage": "starting workers", "waits": True}, {"stage": "workers were lost", "waits": True}):
        watch.progress(waits)
        watch.moved -= 700
        watch.check(600)
        assert not watch.hung
    watch.progress({"stage": "loading"})
    watch.moved -= 500
    watch.check(600)
    assert not watch.hung
    watch.moved -= 200
    watch.check(600)
    assert watch.hung
    assert watch.stop.is_set()


class Placed:
    """Stands for an actor's class: what it is asked for is where the actor shall be."""

    def options(self, *, scheduling_strategy: NodeAffinitySchedulingStrategy) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda: (scheduling_strategy.node_id, scheduling_strategy.soft))


def test_what_stops_trials_stays_on_the_node_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    node = NodeID.from_random().hex()
    monkeypatch.setattr(tuning, "Stops", Placed())
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: node))
    assert tuning.stops_here() == (node, False)


def test_tune_says_nothing_of_its_own_about_trials_that_failed() -> None:
    assert not logging.getLogger("ray.tune.tune").isEnabledFor(logging.ERROR)


def test_a_pruned_trial_has_spent_the_steps_after_its_last_curve_too(order: TrialOrder) -> None:
    journal(order, {1: SECONDS, 2: {**SECONDS, **CURVE}, 3: SECONDS})
    outcome = pruned(order, time.monotonic())
    assert (outcome.status, outcome.steps, outcome.trained_seconds) == ("PRUNED", 3, 1.5)
    assert outcome.flops == allowance_spent(from_document(order.config))[3]
    assert set(outcome.curve.values()) == {0.25}

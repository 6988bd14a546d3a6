"""Where a run stops, what its ledger says it spent, and what a loss is a mean of."""

import json
import re
from pathlib import Path

import pytest
from tokendial.experiments import workload
from tokendial.failures import WorkFailed
from tokendial.ledger import Ledger
from tokendial.runs import Run
from tokendial.train.conclude import conclude
from tokendial.train.horizon import run_cost
from tokendial.train.order import example_at
from tokendial_workloads.vlm.export import load_processor
from train_lab import Lab, configured

pytestmark = pytest.mark.usefixtures("worker_process")
ONE_STAGE = 'stages=[{"name": "all", "share": 1}]'


def ledger(lab: Lab) -> Ledger:
    return Ledger.from_json(lab.checkpoint.manifest.state["ledger"])


def test_a_run_bounded_by_flops_spends_what_was_forecast_and_no_more(tmp_path: Path) -> None:
    config = configured("budget.flops=1e9", ONE_STAGE)
    cost = workload("digits").cost(config)
    steps = config.budget.horizon or 0
    lab = Lab(tmp_path / "run", config).work()
    assert len(lab.logged) == steps
    assert ledger(lab).total.flops == pytest.approx(run_cost(config, cost, steps).flops, rel=1e-9)
    assert ledger(lab).total.flops <= 1e9 < run_cost(config, cost, steps + 1).flops


def test_a_run_bounded_by_tokens_runs_as_many_through_the_language_model(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "run", configured("budget.tokens=5000", "schedule=m3")).work()
    total = ledger(lab).total
    spent = total.visual_tokens + total.text_tokens + total.pad_tokens
    each = 8 * (4 + 16 + 144 + 3 * lab.config.data.text_tokens)
    assert spent <= 5000 < spent + 2 * each
    assert spent % each == 0


def test_counts_that_share_a_step_have_a_loss_each(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "run", configured(ONE_STAGE, "schedule=m3", "micro_batch=4", "budget.steps=2")).work()
    for logged in lab.logged.values():
        each = [logged[f"train/loss/k{count}"] for count in (4, 16, 144)]
        assert len(set(each)) == 3
        assert sum(each) / 3 == pytest.approx(logged["train/loss"])


def test_padding_of_per_example_counts_is_in_the_ledger(tmp_path: Path) -> None:
    query = ("model.projector=query", "model.max_queries=16", "schedule.counts=[4,8,16]", "schedule.mix=sample")
    config = configured("budget.steps=4", ONE_STAGE, "micro_batch=4", *query)
    lab = Lab(tmp_path / "run", config).work()
    total = ledger(lab).total
    forecast = run_cost(config, workload("digits").cost(config), 4)
    assert total.visual_tokens + total.text_tokens + total.pad_tokens == forecast.tokens
    assert total.flops == pytest.approx(forecast.flops, rel=1e-9)
    assert total.pad_tokens > 0


def test_a_run_bounded_by_seconds_stops_after_them_also_when_it_is_resumed(tmp_path: Path) -> None:
    config = configured("budget.seconds=0.8", "budget.horizon=100000", ONE_STAGE, "checkpoint.every=2")
    lab = Lab(tmp_path / "run", config).until(6)
    before = lab.checkpoint.manifest
    assert 0 < before.state["seconds"] < 0.8
    lab.logged.clear()
    lab.work()
    assert min(lab.logged) == before.step + 1
    after = lab.checkpoint.manifest
    longest = max(values["train/step_seconds"] for values in lab.logged.values())
    assert 0.8 <= after.state["seconds"] <= 0.8 + longest
    own = sum(values["train/step_seconds"] for values in lab.logged.values())
    assert after.state["seconds"] == pytest.approx(before.state["seconds"] + own, rel=1e-6)
    assert after.step == ledger(lab).steps < 100000


def test_a_run_whose_seconds_are_over_in_the_warm_up_ends_without_a_model(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "run", configured("budget.seconds=1e-6", "budget.horizon=1000")).work()
    assert list(lab.logged) == [1]
    assert not (lab.folder / "model").exists()
    told = "budget.seconds 1e-06 was used up in step 1, before any of 'all', so nothing learned to answer"
    with pytest.raises(WorkFailed, match=re.escape(told)):
        conclude(Run(lab.folder), lab.config, {})


def test_a_loss_is_a_mean_over_the_answers_of_the_global_batch_whatever_its_parts(tmp_path: Path) -> None:
    uneven = ("workload=train_faults:uneven", ONE_STAGE, "optimizer.lr=1e-2")
    whole = Lab(tmp_path / "whole", configured(*uneven)).work()
    parts = Lab(tmp_path / "parts", configured(*uneven, "micro_batch=2")).work()
    data, task = workload("train_faults:uneven").load(whole.config)
    train = data.datasets(whole.config)["train"]
    places = [example_at(0, place, len(train)) for place in range(8)]
    targets = [task.num_targets(data.collate([train[i] for i in places[at : at + 2]])) for at in range(0, 8, 2)]
    assert len(set(targets)) > 1, "the parts should differ, or a mean of means would pass too"
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    norms = [[lab.logged[step]["train/grad_norm"] for step in lab.logged] for lab in (whole, parts)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_a_model_tells_the_counts_that_were_trained_of_those_of_its_schedule(tmp_path: Path) -> None:
    lab = Lab(tmp_path, configured(ONE_STAGE, "budget.steps=6", "schedule.weights=[1,1,0]", "schedule.mix=one")).work()
    assert ledger(lab).trained_counts == (4, 16) < lab.config.schedule.counts
    assert json.loads((tmp_path / "model" / "config.json").read_text())["counts"] == [4, 16]
    assert load_processor(tmp_path / "model").visual_tokens == 16
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Trained at 4, 16; it serves" in card
    assert "visual_tokens=16," in card

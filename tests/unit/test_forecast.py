"""A forecast is of the run that would happen here: its precision, the parts it trains, and its bound on seconds."""

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import language_folders
import pytest
import torch
from tokendial.experiments import workload
from tokendial.forecast import forecast, within
from tokendial.resolve import resolve
from tokendial.train import engine, probe
from tokendial.train.horizon import StagePlan, run_cost
from tokendial.train.loop import Job

SHORT = ("evaluation.counts=[4]", "evaluation.test_examples=2")


@pytest.mark.parametrize(
    ("bound", "found"),
    [(None, (12, 14.0)), (20.0, (12, 14.0)), (12.0, (11, 12.0)), (4.0, (4, 4.0)), (3.1, (4, 3.1)), (1e-6, (1, 1e-6))],
)
def test_a_bound_on_seconds_has_room_for_the_steps_that_begin_within_it(
    bound: float | None, found: tuple[int, float]
) -> None:
    stage = resolve("digits.tiny", ()).stages[0]
    plans = (StagePlan(stage, 0, 4), StagePlan(stage, 4, 4), StagePlan(stage, 4, 12))
    assert within(bound, plans, (4.0, 0.0, 10.0)) == found


def test_a_run_bounded_by_seconds_is_forecast_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "stage_seconds", lambda job, plan: float(plan.stop - plan.start))
    config = resolve("digits.tiny", (*SHORT, "budget.seconds=60", "budget.horizon=120"))
    found = forecast(config)
    assert (found["steps"], found["seconds_training"]) == (60, 60)
    assert found["stages"] == {"warm_tower": 40, "read": 20, "all": 0}
    assert 20 <= sum(found["steps_per_count"].values()) <= 40
    cost = workload("digits").cost(config)
    assert found["flops"] == run_cost(config, cost, 120, until=60).flops < run_cost(config, cost, 120).flops
    assert 0 < found["tokens"] < run_cost(config, cost, 120).tokens / 2


def test_scoring_is_timed_as_far_as_there_is_something_to_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = f"data.path={language_folders.pictures(tmp_path / 'pictures')}"
    monkeypatch.setattr(probe, "stage_seconds", lambda job, plan: 0.0)
    # Each batch takes a second, by this clock.
    monkeypatch.setattr(probe, "grade", lambda *asked: None)
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=count().__next__))
    asked = (data, "evaluation.batch_size=1", "evaluation.test_examples=256", "evaluation.validation_examples=256")
    found = forecast(resolve("captions.tiny", asked))
    assert found["seconds_scoring"] == found["examples"]["test"] < 20
    often = forecast(resolve("captions.tiny", (*asked, "budget.steps=4", "evaluation.every=2")))
    language = sum(step % 2 == 0 for step in range(1 + often["stages"]["warm_tower"], 5))
    assert language
    assert often["seconds_scoring"] == found["seconds_scoring"] + language * found["examples"]["validation"]


def test_passes_are_timed_in_the_precision_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "precision", lambda config, device: torch.bfloat16)
    timed: list[torch.dtype] = []

    def watched(job: Job, plan: StagePlan) -> float:
        timed.append(job.dtype)
        return stage_seconds(job, plan)

    stage_seconds = probe.stage_seconds
    monkeypatch.setattr(probe, "stage_seconds", watched)
    found = forecast(resolve("digits.tiny", (*SHORT, "budget.steps=3")))
    assert timed == [torch.bfloat16] * 3
    assert found["seconds_training"] > 0


def test_a_precision_that_needs_a_gpu_is_not_timed_without_one() -> None:
    found = forecast(resolve("digits.tiny", (*SHORT, "precision=bf16"), machine_cpus=None))
    assert found["seconds_training"] is None
    assert found["seconds_cover"] == "not timed: precision bf16 needs a GPU; on a CPU use fp32 or auto"
    assert found["flops"] > 0
    assert found["state_bytes_per_worker"] == 16 * sum(found["parameters"].values())


def test_a_run_on_gpus_is_neither_timed_nor_sized_as_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    zero = (*SHORT, "zero.stage=2", "workers=2")
    found, here = (forecast(resolve("digits.tiny", (*zero, f"device={x}"), machine_cpus=None)) for x in ("gpu", "cpu"))
    assert found["seconds_cover"] == "not timed: device is 'gpu', and this machine has none"
    assert found["state_bytes_per_worker"] < here["state_bytes_per_worker"]


def test_a_forecast_is_for_the_device_that_the_run_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokendial.machine.gpus", lambda: 1)
    config = resolve("digits.tiny", (*SHORT, "workers=2"), machine_cpus=None)
    assert forecast(config)["seconds_training"] > 0, "one GPU is not enough for two workers, which train on CPUs"


def test_a_frozen_model_is_timed_where_its_weights_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    align = 'stages=[{"name": "align", "share": 1, "train": ["projector"]}]'
    parts = forecast(resolve("digits.tiny", SHORT))["parameters"]
    monkeypatch.setattr("tokendial.train.memory.free_bytes", lambda device: 2 * 8 * sum(parts.values()))
    assert forecast(resolve("digits.tiny", SHORT))["seconds_training"] is None
    assert forecast(resolve("digits.tiny", (*SHORT, align)))["seconds_training"] > 0

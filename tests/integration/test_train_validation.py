"""Curves on the way: scored between two steps, by each worker for itself, and without a trace in training."""

from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from tokendial.scores import Graded, Scores, grade
from torch import nn
from train_lab import Cut, Lab, configured

pytestmark = pytest.mark.usefixtures("worker_process")


@pytest.mark.parametrize("zero", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_curve_on_the_way_is_of_the_weights_so_far_and_changes_no_step(
    zero: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[bool] = []

    def watched(task: Any, model: nn.Module, *rest: Any) -> Graded:
        # DeepSpeed marks the parameters that it gathers from all ranks in each pass.
        shared.append(any(hasattr(parameter, "ds_id") for parameter in model.parameters()))
        return grade(task, model, *rest)

    monkeypatch.setattr("tokendial.train.worker.grade", watched)
    stage, every = f"zero.stage={zero}", ("evaluation.every=3", "evaluation.split=validation")
    plain = Lab(tmp_path / "plain", configured(stage)).work()
    lab = Lab(tmp_path / "watched", configured(stage, *every)).work()
    assert lab.losses == plain.losses
    curve = {step: values["validation/quality/k4"] for step, values in lab.logged.items() if step % 3 == 0 and step > 4}
    assert list(curve) == [6, 9, 12]
    assert curve[12] == pytest.approx(mean(Scores.read(lab.folder / "scores.json").items.quality[4]))
    assert shared == [False] * 5


def test_a_curve_that_was_cut_short_at_a_checkpoint_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*anything: Any) -> Graded:
        raise Cut

    lab = Lab(tmp_path / "run", configured("checkpoint.every=3", "evaluation.every=3"))
    with monkeypatch.context() as patched:
        patched.setattr("tokendial.train.worker.grade", cut)
        with pytest.raises(Cut):
            lab.work()
    assert max(lab.logged) == 6
    lab.work()
    assert [step for step in sorted(lab.logged) if "validation/quality/k4" in lab.logged[step]] == [6, 9, 12]

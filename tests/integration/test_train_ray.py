"""Whole runs on two Ray Train workers: what they leave behind, and that they learn what one worker learns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from run_lab import RUN, Place, cluster_is_free, folder_of, history, say, tracked, train, until
from tokendial import api
from tokendial.curve import token_curve
from tokendial.experiments import ConfigError
from tokendial.model_folder import CARD, LADDER, check_digests, read_card
from tokendial.results import read_result
from tokendial.runs import lineage
from tokendial.scores import Scores
from tokendial.train import ray_trainer
from tokendial.train.checkpoint import WEIGHTS, newest
from train_lab import Lab, configured

pytestmark = pytest.mark.usefixtures("ray_cluster")
TWO = ("workers=2", "evaluation.counts=[1,4,16]", "evaluation.test_examples=8", "evaluation.table_examples=2")


@pytest.mark.parametrize("zero", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_two_workers_train_to_the_end_and_leave_everything_behind(
    zero: int, home: Path, tmp_path: Path, worker_process: None
) -> None:
    # One batch of validation, so that one worker scores it and the other none.
    result = train(*TWO, f"zero.stage={zero}", "evaluation.every=6")
    folder = folder_of(result)
    assert read_result(folder / "result.json") == result
    assert result.status == "FINISHED"
    assert list(result.curve) == [1, 4, 16]
    assert result.steps == 12
    assert result.spent is not None
    assert result.spent.total.flops == pytest.approx(result.flops)
    # Both workers are paid for checkpoints, export and scoring too.
    assert result.seconds == result.spent.wall_seconds
    assert result.spent.worker_seconds > 2 * result.seconds > 0
    assert all(tally.peak_bytes > 100 << 20 for tally in result.spent.counts.values())
    check_digests(folder / "model")
    assert read_card(folder / "model").autc == result.autc
    ladder = json.loads((folder / "model" / LADDER).read_text())
    assert [row["count"] for row in ladder["rows"]] == [1, 4, 16]
    assert {row["count"]: row["quality"] for row in ladder["rows"]} == {k: p.quality for k, p in result.curve.items()}
    assert (folder / "model" / CARD).is_file()
    assert all(Path(path).stat().st_size > 1000 for path in result.figures.values())
    assert {"curve", "exposure", "examples"} <= result.figures.keys()
    scores = Scores.read(folder / "scores.json")
    assert token_curve(scores.items).points == result.curve
    # Each rank scores its share of the batches; every question is there once.
    assert len(scores.items.sources) == len(scores.targets) == 8 * 3
    assert len(set(scores.items.sources)) == 8
    assert_tracked(home, result.name, folder)
    alone = Lab(tmp_path / "alone", configured(f"zero.stage={zero}")).work()
    losses = history(home, result.name, "train/loss")
    assert list(losses) == list(range(1, 13))
    assert list(losses.values()) == pytest.approx(alone.losses, rel=1e-4)
    assert list(history(home, result.name, "validation/quality/k4")) == [6, 12]
    until("free CPUs", cluster_is_free)


def assert_tracked(home: Path, name: str, folder: Path) -> None:
    client, run = tracked(home, name)
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "0"
    assert run.data.params["global_batch"] == "8"
    assert run.data.tags["config.workers"] == "2"
    assert list(history(home, name, "curve/quality")) == [1, 4, 16]
    for metric in ("train/loss", "train/lr", "train/grad_norm", "train/step_seconds"):
        assert list(history(home, name, metric)) == list(range(1, 13)), metric
    models = client.search_logged_models([run.info.experiment_id])
    mine = [model for model in models if model.source_run_id == run.info.run_id]
    assert len(mine) == 1
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "result.json", "figures", "tables"} <= artifacts
    assert json.loads((folder / "run.json").read_text())["run_id"] == run.info.run_id


def test_unreadable_data_is_refused_before_anything_is_written(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data of train_faults:unreadable is broken at line 3$"):
        train("workload=train_faults:unreadable")
    assert not home.exists()


def test_a_finished_run_returns_at_once_and_a_new_one_forks_its_weights(
    home: Path, tmp_path: Path, place: Place, worker_process: None
) -> None:
    settings = RUN[1:]
    shutil.copytree(place.home, home)
    first = read_result(home / "first" / "result.json")
    stages: list[object] = []
    again = train(*settings, name="first", progress=lambda latest: stages.append(latest["stage"]))
    assert again == first
    assert stages == []
    forked = train(*settings, "seed=6", name="first", new=True, source="first")
    assert forked.name == "first-2"
    assert forked.run_id != first.run_id
    _, run = tracked(home, forked.name)
    assert run.data.tags["forked_from"] == first.name
    digest = read_card(folder_of(first) / "model").data_digests["test"]
    assert (first.data, first.parent, first.lineage) == (digest, None, "")
    assert (forked.data, forked.parent, forked.lineage) == (digest, first.name, lineage(first.name))
    assert api.report(["last"]) == [forked]
    source = newest(folder_of(first) / "checkpoints")
    assert source is not None
    config = configured(*settings, "seed=6")
    control = Lab(tmp_path / "control", config).work(weights=source.folder / WEIGHTS)
    assert list(history(home, forked.name, "train/loss").values()) == control.losses
    fresh = Lab(tmp_path / "fresh", config).work()
    assert fresh.losses[4:] != control.losses[4:]
    assert_compared(home)


def assert_compared(home: Path) -> None:
    """Both runs on one page, and as one line."""
    compared = say("report", "first", "first-2", home=home)
    assert compared.code == 0, compared.err
    page = Path(compared.out.split("comparison:")[1].strip())
    assert page.is_relative_to(home)
    assert page.stat().st_size > 10_000
    both = say("report", "first", str(home / "first-2"), "--json", home=home)
    assert both.code == 0, both.err
    assert [result["name"] for result in both.document["runs"]] == ["first", "first-2"]


def test_workers_ended_for_want_of_memory_are_said_to_be_so() -> None:
    # Ray 2.60's own words; what follows them is advice on its settings.
    told = (
        "OutOfMemoryError: 8 worker(s) were killed due to the node running low on memory.\n"
        "OOM kill reason: Memory usage 24099942400B exceeded threshold of 24012677120B (95.0% of 25276502016B limit)\n"
        "Refer to the documentation on how to address the out of memory issue: https://docs.ray.io"
    )
    assert ray_trainer._cause(RuntimeError(told)) == (
        "this machine ran out of memory and Ray ended workers: Memory usage 24099942400B exceeded threshold of "
        "24012677120B (95.0% of 25276502016B limit)"
    )

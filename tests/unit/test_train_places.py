"""Where a run goes on, and from what: folders by their whole path, the same data, weights that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from tokendial import api, runs
from tokendial.contracts import RunConfig
from tokendial.experiments import ConfigError, workload
from tokendial.identity import Identity, user_name
from tokendial.resolve import resolve
from tokendial.results import RunResult, write_result
from tokendial.runs import Run
from tokendial.tracking.opening import open_run
from tokendial.train.checkpoint import WEIGHTS, Manifest, folder_of, seal
from tokendial.train.driver import find_place, with_horizon

ME = Identity(user=user_name())


def configured(*overrides: str) -> RunConfig[Any]:
    return with_horizon(resolve("digits.tiny", overrides))


def begun(config: RunConfig[Any], folder: Path, status: str = "RUNNING") -> Run:
    """A run that was told of its data, and then was killed or finished; its tracking server is away."""
    run = runs.create(runs.run_name(config), config, ME)
    data, _ = workload(config.workload).load(config)
    open_run(config, ME, "http://127.0.0.1:9", run.folder, digests=data.digests(config))
    if status == "FINISHED":
        write_result(run.result, RunResult(run_id=None, name=run.name, status="FINISHED"))
        run.update(status=status)
    return run


def digits_folder(root: Path, seed: int) -> Path:
    noise = np.random.default_rng(seed)
    for digit in range(10):
        (root / str(digit)).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(noise.integers(0, 256, (8, 8), np.uint8)).save(root / str(digit) / f"{number}.png")
    return root


@pytest.mark.parametrize("status", ["KILLED", "FINISHED"])
def test_a_run_does_not_go_on_over_other_data(status: str, home: Path, tmp_path: Path) -> None:
    run = begun(configured(), tmp_path, status)
    other = configured(f"data.path={digits_folder(tmp_path / 'mine', 0)}")
    assert runs.run_name(other) == run.name
    with pytest.raises(ConfigError, match=r"was trained on other data .*mine.*use --new or another --name"):
        api.train(other)
    assert run.config_document()["data"]["path"] is None


def test_a_finished_run_is_found_where_its_data_has_moved(home: Path, tmp_path: Path) -> None:
    run = begun(configured(f"data.path={digits_folder(tmp_path / 'here', 0)}"), tmp_path, "FINISHED")
    moved = configured(f"data.path={digits_folder(tmp_path / 'there', 0)}")
    assert api.train(moved).name == run.name


def test_folders_are_kept_by_their_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = digits_folder(tmp_path / "mine", 0)
    monkeypatch.chdir(tmp_path)
    assert resolve("digits.tiny", ["data.path=mine"]).data.path == str(folder)
    assert resolve("digits.tiny", ["data.path=./mine"]).data.path == str(folder)
    assert resolve("digits.tiny", ["data.path=mine"], elsewhere=True).data.path == "mine"


def finished(config: RunConfig[Any]) -> str:
    """A finished run with weights; returns its name."""
    import torch

    run = runs.create("source", config, ME)
    place = folder_of(run.checkpoints, 12, "weights")
    place.mkdir(parents=True)
    save_file({"weight": torch.zeros(1)}, place / WEIGHTS)
    seal(place, Manifest(kind="weights", step=12, index=12, stage=3, world=1, zero=1, schedule=""))
    run.update(status="FINISHED")
    return run.name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model=query", "projector"),
        ("model.lora.rank=2", "frozen"),
        ("model.language.config.num_hidden_layers=3", "language"),
        ("model.vision.config.hidden_size=32", "tower"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_starts(change: str, words: str, home: Path) -> None:
    source = finished(configured())
    with pytest.raises(ConfigError, match=f"weights of run 'source' do not fit .*{words} [0-9]+ → [0-9]+"):
        find_place(configured(change), ME.user, None, False, source)


def test_weights_that_fit_are_taken_under_other_settings(home: Path) -> None:
    source = finished(configured())
    other = configured("seed=3", "model.pooling=resize_then_avg", "schedule=tokenflex", "budget.steps=20")
    run, weights, parent = find_place(other, ME.user, None, False, source)
    assert weights is not None
    assert parent == "source"
    assert run.name.endswith("-from-source")

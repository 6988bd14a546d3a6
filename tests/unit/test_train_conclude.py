"""The table of examples that a finished run leaves behind."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokendial.contracts import RunConfig
from tokendial.runs import Run
from tokendial.train import examples
from tokendial.train.examples import example_table
from tokendial.train.loop import make_job
from tokendial_workloads.captions.config import CaptionsData
from tokendial_workloads.captions.experiments import tiny as captions_tiny
from tokendial_workloads.digits.experiments import tiny as digits_tiny
from tokendial_workloads.vlm.export import load_processor


def table(run: Run, config: RunConfig[Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each example's picture as it is kept, and the pixels [3, 48, 48] of the first items of the split."""
    job = make_job(config, 2, 0, 1, torch.device("cpu"))
    job.task.export(job.task.build_model(config), config, str(run.model))
    answered = example_table(job, job.task.load(str(run.model)))
    kept = [np.asarray(Image.open(BytesIO(each.image_png))) for each in answered]
    assert len(kept) == config.evaluation.table_examples
    items = job.data.datasets(config)[config.evaluation.split]
    return kept, [items[number]["pixel_values"] for number in range(len(kept))]


def test_pictures_of_little_contrast_are_kept_as_they_are(tmp_path: Path) -> None:
    lines = ["file_name,text"]
    for number in range(60):
        grey = np.random.default_rng(number).integers(100, 140, (48, 48, 3), np.uint8)
        Image.fromarray(grey).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,thing number {number}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    run = Run(tmp_path / "run")
    kept, asked = table(run, captions_tiny().model_copy(update={"data": CaptionsData(path=str(tmp_path))}))
    files = [np.asarray(Image.open(file)) for file in tmp_path.glob("*.png")]
    processor = load_processor(run.model).image_processor
    for picture, pixels in zip(kept, asked, strict=True):
        assert any((picture == drawn).all() for drawn in files)
        read = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
        assert np.abs(read - pixels).max() < 1e-6


def test_examples_are_answered_where_and_how_the_model_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def grade(*arguments: Any) -> dict[int, list[Any]]:
        asked.append(arguments[-2:])
        return {count: [] for count in arguments[5]}

    monkeypatch.setattr(examples, "grade", grade)
    job = replace(make_job(digits_tiny(), 2, 0, 1, torch.device("cpu")), device=torch.device("meta"), dtype=torch.half)
    example_table(job, torch.nn.Identity())
    assert asked == [(torch.device("meta"), torch.half)]


def test_mosaics_are_white_ink_on_black(tmp_path: Path) -> None:
    kept, asked = table(Run(tmp_path), digits_tiny())
    for picture in kept:
        assert (picture.min(), picture.max()) == (0, 255)
        shown = picture.transpose(2, 0, 1) / 127.5 - 1
        assert min(np.abs(shown - pixels).max() for pixels in asked) <= 1 / 255

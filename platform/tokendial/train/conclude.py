"""Figures and the table of fixed examples that a finished run leaves behind."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokendial.contracts import RunConfig
from tokendial.experiments import workload
from tokendial.results import ExampleAnswers, RunResult
from tokendial.runs import Run
from tokendial.schedule import TokenSchedule
from tokendial.scores import examples_of, grade


def example_table(run: Run, config: RunConfig[Any]) -> list[ExampleAnswers]:
    """The first `evaluation.table_examples` questions of the split, answered at every count by the exported model."""
    import torch
    from tokendial.train.step import move

    wanted = config.evaluation.table_examples
    if not wanted:
        return []
    data, task = workload(config.workload).load(config)
    chosen = examples_of(data, config, config.evaluation.split, wanted)
    batch_size = config.evaluation.model_copy(update={"batch_size": len(chosen)})
    whole = config.model_copy(update={"evaluation": batch_size})
    device = torch.device("cpu")
    model = task.load(str(run.model)).to(device, torch.float32)
    graded = grade(task, model, data, chosen, whole, config.evaluation.counts, device, torch.float32)
    pictures = task.pictures(move(data.collate(chosen), device, torch.float32))
    rows = zip(*(graded[count] for count in config.evaluation.counts), strict=True)
    return [
        ExampleAnswers(
            image_png=_png(pictures[answers[0].row]),
            question=answers[0].question,
            target=answers[0].target,
            answers={k: a.prediction for k, a in zip(config.evaluation.counts, answers, strict=True)},
            quality={k: a.quality for k, a in zip(config.evaluation.counts, answers, strict=True)},
            group=answers[0].group,
        )
        for answers in list(rows)[:wanted]
    ]


def draw_figures(
    run: Run, result: RunResult, schedule: TokenSchedule, examples: Sequence[ExampleAnswers]
) -> dict[str, Path]:
    """Curve (PNG and HTML), exposure of the schedule (PNG) and the table of examples (HTML)."""
    from tokendial import report

    folder = run.figures
    folder.mkdir(exist_ok=True)
    figures = {
        "curve": report.curve_png([result], folder / "curve.png"),
        "curve (html)": report.curve_html([result], folder / "curve.html"),
        "exposure": report.exposure_png(schedule, folder / "exposure.png", horizon=result.steps),
    }
    if examples:
        figures["examples"] = report.examples_html(examples, folder / "examples.html")
    return figures


def _png(picture_HW3: Any) -> bytes:
    """A picture of bytes as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture_HW3.numpy()).save(buffer, "PNG")
    return buffer.getvalue()

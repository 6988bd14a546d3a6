"""The table of fixed examples: a few questions of the split with the answer at every count, as the model was scored.

It is what people look at, and what an endpoint's golden prompts hold a replica against.
"""

from __future__ import annotations

import io

import torch
from PIL import Image
from tokendial.results import ExampleAnswers
from tokendial.scores import examples_of, grade
from tokendial.train.loop import Job
from tokendial.train.step import move
from torch import Tensor, nn


def example_table(job: Job, model: nn.Module) -> list[ExampleAnswers]:
    """The first `evaluation.table_examples` questions, answered on the job's device and in its precision."""
    config, wanted = job.config, job.config.evaluation.table_examples
    if not wanted:
        return []
    chosen = examples_of(job.data, config, config.evaluation.split, wanted)
    together = config.evaluation.model_copy(update={"batch_size": len(chosen)})
    config, counts = config.model_copy(update={"evaluation": together}), config.evaluation.counts
    graded = grade(job.task, model, job.data, chosen, config, counts, job.device, job.dtype)
    pictures = job.task.pictures(move(job.data.collate(chosen), torch.device("cpu"), torch.float32))
    rows = zip(*(graded[count] for count in counts), strict=True)
    return [
        ExampleAnswers(
            image_png=_png(pictures[answers[0].row]),
            question=answers[0].question,
            target=answers[0].target,
            answers={k: a.prediction for k, a in zip(counts, answers, strict=True)},
            quality={k: a.quality for k, a in zip(counts, answers, strict=True)},
            group=answers[0].group,
        )
        for answers in list(rows)[:wanted]
    ]


def _png(picture_HW3: Tensor) -> bytes:
    """A picture of bytes as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3.numpy()).save(buffer, "PNG")
    return buffer.getvalue()

"""Models of random weights, exported with a made-up curve: speed does not depend on what is learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokendial.contracts import RunConfig
from tokendial.curve import CurvePoint
from tokendial.experiments import workload
from tokendial.model_folder import ModelCard, answer_flops, write_cards
from tokendial.resolve import resolve


def digits_model(folder: Path) -> Path:
    """The model of the `digits` experiment."""
    config = resolve("digits", [], machine_cpus=None)
    return export_untrained(config, folder, dict.fromkeys(config.evaluation.counts, 0.5))


def export_untrained(config: RunConfig[Any], folder: Path, quality: Mapping[int, float], endless: bool = False) -> Path:
    """Export the configuration's model with a ladder of that quality by count; `endless`: no answer ends by itself."""
    chosen = workload(config.workload)
    _, task = chosen.load(config)
    task.export(task.build_model(config).eval(), config, str(folder))
    if endless:
        _without_end(folder / "generation_config.json")
    cost = chosen.cost(config)
    card = ModelCard(
        workload=config.workload, run="bench", metric="none: random weights", split="none", trained_counts=(),
        evaluated_counts=tuple(quality), projector=config.model.projector, schedule={}, commit="unknown", autc=0.0,
        data_digests={}, config=config.model_dump(mode="json"), versions={},
    )  # fmt: skip
    points = {count: CurvePoint(value, (value, value), 0) for count, value in quality.items()}
    write_cards(folder, card, points, {count: answer_flops(cost, count) for count in quality})
    return folder


def _without_end(path: Path) -> None:
    """End answers at a token that is never written, so that all are as long as was asked for."""
    document = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**document, "eos_token_id": document["suppress_tokens"]}), "utf-8")

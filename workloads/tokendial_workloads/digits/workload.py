"""The digits workload as the platform finds it; importing this module imports no torch."""

from typing import TYPE_CHECKING, Any

from tokendial.contracts import Cost, Data, RunConfig, Task, Workload

from tokendial_workloads.digits.attribution import ATTRIBUTION, LICENCE
from tokendial_workloads.digits.config import DigitsData
from tokendial_workloads.digits.words import CELLS, OPENING_TOKENS, ROWS, SPECIALS, TURN_TOKENS, WORDS
from tokendial_workloads.vlm.admission import check_folder, check_model
from tokendial_workloads.vlm.cost import ModelCost
from tokendial_workloads.vlm.shapes import tower_shape, tower_values

if TYPE_CHECKING:
    import torch
    from tokendial.contracts.serving import Serving

SIDE = 48  # pixels of a mosaic
_VOCABULARY = len(SPECIALS) + len(WORDS)


def check(config: RunConfig[Any]) -> None:
    """Raise ValueError where the settings cannot work together."""
    data = config.data
    if not isinstance(data, DigitsData):
        raise ValueError(f"the digits workload needs the settings of DigitsData, got {type(data).__name__}")
    if config.model.language.tokenizer is not None:
        raise ValueError(
            f"model.language.tokenizer {config.model.language.tokenizer} cannot be used: the answers of digits are "
            "single words, which its own tokenizer writes as one token each"
        )
    check_model(config, _VOCABULARY)
    _, tower = tower_values(config.model)
    if tower["image_size"] != SIDE:
        raise ValueError(
            f"model.vision.config.image_size {tower['image_size']} does not fit: mosaics of digits have {SIDE} pixels"
        )
    side = tower_shape(config.model).grid[0]
    if side % len(ROWS) and any(stage.objective == "tower" for stage in config.stages):
        raise ValueError(
            f"model.vision.config.patch_size {tower['patch_size']} gives {side} x {side} patches, and a stage of "
            f"objective 'tower' needs a multiple of {len(ROWS)} a side, as mosaics have {len(ROWS)} x {len(ROWS)} "
            "cells; use patch_size 4, 6 or 12, or stages without that objective"
        )
    needed = OPENING_TOKENS + data.turns * TURN_TOKENS
    if data.text_tokens < needed:
        raise ValueError(f"data.text_tokens {data.text_tokens} is too small: data.turns {data.turns} needs {needed}")
    examples = max(config.evaluation.validation_examples, config.evaluation.test_examples)
    if examples > data.evaluation_mosaics:
        raise ValueError(
            f"evaluation asks for {examples} examples; data.evaluation_mosaics is {data.evaluation_mosaics}"
        )


def cost(config: RunConfig[Any]) -> Cost:
    """Text is padded to `data.text_tokens` beside the image slot; the warm-up head reads at three resolutions."""
    model = ModelCost(config.model, config.data.text_tokens + 1, _VOCABULARY, config.activation_checkpointing)
    readings = model.num_patches * 10 + len(CELLS) * (10 + 8) + 4 * (4 * 10)
    model.warmup_head_flops = 2.0 * model.tower.width * readings
    return model


def load(config: RunConfig[Any]) -> tuple[Data, Task]:
    from tokendial_workloads.digits.data import DigitsMosaics
    from tokendial_workloads.digits.task import DigitsTask

    return DigitsMosaics(), DigitsTask(own_data=config.data.path is not None)


def serve(folder: str, device: "torch.device", dtype: "torch.dtype", num_slots: int) -> "Serving":
    from tokendial_workloads.vlm.serving import VlmServing

    return VlmServing(folder, device, dtype, num_slots)


digits = Workload(
    name="digits",
    metric="accuracy",
    licence=LICENCE,
    attribution=ATTRIBUTION,
    check=check,
    cost=cost,
    load=load,
    serve=serve,
    check_data=check_folder,
)

"""Experiments of the digits workload: `tokendial train digits`, `digits.demo`, `digits.tiny`, `digits.twins`.

Each is a function that returns the whole configuration; a variant replaces fields of another.
"""

from collections.abc import Mapping
from typing import Any

from tokendial.contracts import (
    BudgetConfig,
    CheckpointConfig,
    EvaluationConfig,
    LanguageConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    StageConfig,
    TowerConfig,
)
from tokendial.schedule import Mix, Phase, ScheduleConfig

from tokendial_workloads.digits.config import DigitsData

COUNTS = (4, 16, 144)
GRID_OF_COUNTS = (1, 4, 9, 16, 36, 64, 144)
# Four tokens, which hold four cells each, learn slowest and cost least: a step at 16 or 144 runs them as well.
SMALLEST_TOO: Mapping[str, Any] = {"then": (0, 1, 1), "mix": "smallest"}


def digits() -> RunConfig[DigitsData]:
    """The full experiment, about a quarter of an hour on two cores."""
    return _flexible(
        warm=800,
        read=600,
        joint=3600,
        **SMALLEST_TOO,
        experiment="digits",
        description="mosaics of real digits: the full experiment",
        checkpoint=CheckpointConfig(every=400),
        evaluation=EvaluationConfig(counts=GRID_OF_COUNTS, test_examples=4096),
    )


def demo() -> RunConfig[DigitsData]:
    """The same model, trained for four minutes on one core."""
    return _flexible(
        warm=700,
        read=500,
        joint=1000,
        then=(2, 3, 5),
        mix="one",
        experiment="digits.demo",
        description="mosaics of real digits: the demonstration, a few minutes on two cores",
        checkpoint=CheckpointConfig(every=250),
        evaluation=EvaluationConfig(counts=GRID_OF_COUNTS, validation_examples=256, test_examples=2048),
    )


def twins() -> RunConfig[DigitsData]:
    """The flexible row of the trained-at x served-at matrix, short enough to be trained twelve times on two cores."""
    return _flexible(
        warm=700,
        read=500,
        joint=3000,
        **SMALLEST_TOO,
        experiment="digits.twins",
        description="mosaics of real digits: the run that twins are held to",
        workers=1,
        checkpoint=CheckpointConfig(every=500),
        evaluation=EvaluationConfig(counts=GRID_OF_COUNTS, test_examples=4096),
    )


def tiny() -> RunConfig[DigitsData]:
    """A few steps of a narrow model, for tests: it learns next to nothing."""
    return digits().model_copy(
        update={
            "experiment": "digits.tiny",
            "description": "mosaics of real digits: seconds, for tests",
            "workers": 1,
            "global_batch": 8,
            "model": _model(width=16),
            "data": DigitsData(turns=4, text_tokens=25, train_mosaics=4096, evaluation_mosaics=128),
            "stages": _stages(warm=4, read=4, joint=4),
            "budget": BudgetConfig(steps=12),
            "checkpoint": CheckpointConfig(every=4),
            "evaluation": EvaluationConfig(
                counts=(1, 4, 16, 144), validation_examples=16, test_examples=32, batch_size=16, table_examples=4
            ),
        }
    )


def _flexible(
    warm: int, read: int, joint: int, then: tuple[float, ...], mix: Mix, **fields: Any
) -> RunConfig[DigitsData]:
    """Three counts, by the law `then` once the language model has learned to look at 16 tokens, one a cell."""
    steps = warm + read + joint
    return RunConfig[DigitsData](
        workload="digits",
        global_batch=32,
        model=_model(width=64),
        schedule=ScheduleConfig(
            preset="digits",
            counts=COUNTS,
            weights=(1, 5, 1),
            phases=(
                Phase(until=round(0.7 * read / (read + joint), 3), weights=(1, 5, 1)),
                Phase(until=1, weights=then),
            ),
            mix=mix,
        ),
        data=DigitsData(),
        optimizer=OptimizerConfig(lr=4e-3, tower_lr_factor=0.3),
        stages=_stages(warm, read, joint),
        budget=BudgetConfig(steps=steps),
        **{"workers": 2, **fields},
    )


def _model(width: int) -> ModelConfig:
    shape = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 3 * width}
    vision = {**shape, "stem_width": width // 2, "num_hidden_layers": 1, "image_size": 48}
    # norms of queries and keys, wide initial weights and slow rotations: looking things up is learned in half the steps
    language = {
        **shape,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "head_dim": width // 4,
        "initializer_range": width**-0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e8},
    }
    return ModelConfig(
        vision=TowerConfig(kind="tokendial_stem", config=vision),
        language=LanguageConfig(kind="qwen3", config=language),
    )


def _stages(warm: int, read: int, joint: int) -> tuple[StageConfig, ...]:
    """Shares in optimizer steps: name digits through a throw-away head, learn where to look, then all together."""
    return (
        StageConfig(name="warm_tower", share=warm, train=("tower",), objective="tower", lr_factor=1.7),
        StageConfig(name="read", share=read, train=("projector", "language")),
        StageConfig(name="all", share=joint, lr_factor=0.75),
    )

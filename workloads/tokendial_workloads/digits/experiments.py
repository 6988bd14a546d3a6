"""Experiments of the digits workload: `tokendial train digits`, `digits.demo`, `digits.tiny`, `digits.twins`.

Each is a function that returns the whole configuration; a variant replaces fields of another.
"""

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
from tokendial.schedule import ScheduleConfig

from tokendial_workloads.digits.config import DigitsData

COUNTS = (4, 16, 144)
GRID_OF_COUNTS = (1, 4, 9, 16, 36, 64, 144)


def digits() -> RunConfig[DigitsData]:
    """The full experiment: every count within a point of its twin, about eight minutes on one core."""
    return RunConfig[DigitsData](
        experiment="digits",
        workload="digits",
        description="mosaics of real digits: the full experiment",
        workers=2,
        global_batch=32,
        model=_model(width=64),
        schedule=ScheduleConfig(preset="tokenflex", counts=COUNTS, weights=(2, 3, 5)),
        data=DigitsData(),
        optimizer=OptimizerConfig(lr=1e-3),
        stages=_stages(warm=300, joint=2000),
        budget=BudgetConfig(steps=2300),
        checkpoint=CheckpointConfig(every=400),
        evaluation=EvaluationConfig(counts=GRID_OF_COUNTS, test_examples=4096),
    )


def demo() -> RunConfig[DigitsData]:
    """The same model trained for three minutes."""
    full = digits()
    return full.model_copy(
        update={
            "experiment": "digits.demo",
            "description": "mosaics of real digits: the three-minute demonstration",
            "stages": _stages(warm=300, joint=800),
            "budget": BudgetConfig(steps=1100),
            "checkpoint": CheckpointConfig(every=200),
            "evaluation": EvaluationConfig(counts=GRID_OF_COUNTS, validation_examples=256, test_examples=2048),
        }
    )


def twins() -> RunConfig[DigitsData]:
    """The full experiment, the flexible row of the trained-at x served-at matrix."""
    return digits().model_copy(
        update={"experiment": "digits.twins", "description": "mosaics of real digits: the run that twins are held to"}
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
            "data": DigitsData(turns=4, text_tokens=21, train_mosaics=4096, evaluation_mosaics=128),
            "stages": _stages(warm=4, joint=8),
            "budget": BudgetConfig(steps=12),
            "checkpoint": CheckpointConfig(every=4),
            "evaluation": EvaluationConfig(
                counts=(1, 4, 16), validation_examples=16, test_examples=32, batch_size=16, table_examples=4
            ),
        }
    )


def _model(width: int) -> ModelConfig:
    shape = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 3 * width}
    return ModelConfig(
        vision=TowerConfig(
            kind="tokendial_stem", config={**shape, "stem_width": width // 2, "num_hidden_layers": 1, "image_size": 48}
        ),
        language=LanguageConfig(
            kind="llama", config={**shape, "num_hidden_layers": 2, "initializer_range": width**-0.5}
        ),
        projector="pool",
    )


def _stages(warm: int, joint: int) -> tuple[StageConfig, ...]:
    """Shares in optimizer steps: name the digits of cells through a throw-away head, then answer questions."""
    return (
        StageConfig(name="warm_tower", share=warm, train=("tower",), objective="tower", lr_factor=2.0),
        StageConfig(name="all", share=joint),
    )

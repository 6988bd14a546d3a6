"""Experiments of the captions workload: `tokendial train captions.openmoji` and `captions.tiny`."""

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

from tokendial_workloads.captions.config import CaptionsData


def openmoji() -> RunConfig[CaptionsData]:
    """Name 3,953 emoji; validation and test hold concepts that training never shows in any skin tone or gender."""
    return RunConfig[CaptionsData](
        experiment="captions.openmoji",
        workload="captions.openmoji",
        description="names of emoji, tested on held-out concepts",
        workers=2,
        global_batch=32,
        model=_model(width=96, layers=2),
        schedule=ScheduleConfig(preset="tokenflex", counts=(4, 16, 144), weights=(2, 3, 5)),
        data=CaptionsData(),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.05),
        stages=_stages(warm=500, joint=2000),
        budget=BudgetConfig(steps=2500),
        checkpoint=CheckpointConfig(every=500),
        evaluation=EvaluationConfig(
            counts=(1, 4, 9, 16, 36, 64, 144), validation_examples=256, test_examples=256, max_new_tokens=24
        ),
    )


def tiny() -> RunConfig[CaptionsData]:
    """A few steps of a narrow model, for tests: it learns next to nothing."""
    return openmoji().model_copy(
        update={
            "experiment": "captions.tiny",
            "description": "names of emoji: seconds, for tests",
            "workers": 1,
            "global_batch": 8,
            "model": _model(width=16, layers=1),
            "stages": _stages(warm=4, joint=8),
            "budget": BudgetConfig(steps=12),
            "checkpoint": CheckpointConfig(every=4),
            "evaluation": EvaluationConfig(
                counts=(1, 4, 16),
                validation_examples=16,
                test_examples=32,
                batch_size=16,
                max_new_tokens=8,
                table_examples=4,
            ),
        }
    )


def _model(width: int, layers: int) -> ModelConfig:
    shape = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 3 * width}
    vision = {**shape, "stem_width": width // 2, "num_hidden_layers": layers, "image_size": 48}
    return ModelConfig(
        vision=TowerConfig(kind="tokendial_stem", config=vision),
        language=LanguageConfig(
            kind="llama", config={**shape, "num_hidden_layers": 2, "initializer_range": width**-0.5}
        ),
    )


def _stages(warm: int, joint: int) -> tuple[StageConfig, ...]:
    """Shares in optimizer steps: name words of the caption through a throw-away head, then write it."""
    return (
        StageConfig(name="warm_tower", share=warm, train=("tower",), objective="tower"),
        StageConfig(name="all", share=joint),
    )

"""The configuration of the TokenFLEX paper (arXiv 2504.03154) at its own scale, and the same at a tenth of its width.

SigLIP-so400m (27 layers, width 1152, 14-pixel patches of 448-pixel images: 1,024 patches), the pool projector, and
Qwen2.5 at 3 B (width 2048) or 7 B (width 3584); counts 64, 144 and 256 drawn 2:3:5. The paper's learning rates and
data are not public; the recipe here is the usual one, projector first and then all of it. Run it with
`tokendial train vlm.paper`, on GPUs.
"""

from typing import Any

from tokendial.contracts import (
    BudgetConfig,
    EvaluationConfig,
    LanguageConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    StageConfig,
    TowerConfig,
    ZeroConfig,
)
from tokendial.schedule import preset

from tokendial_workloads.captions.config import CaptionsData

COUNTS = (64, 144, 256)
GRID_OF_COUNTS = (16, 36, 64, 100, 144, 256)

SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
}
_QWEN = {
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
QWEN_3B = {
    **_QWEN,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
QWEN_7B = {
    **_QWEN,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}


def paper_3b() -> RunConfig[CaptionsData]:
    """SigLIP-so400m with Qwen2.5-3B: a projector of 15.05 M parameters."""
    return _paper("paper_3b", "SigLIP-so400m + Qwen2.5-3B, 64/144/256 tokens of 1,024 patches", SO400M, QWEN_3B)


def paper_7b() -> RunConfig[CaptionsData]:
    """SigLIP-so400m with Qwen2.5-7B: a projector of 20.36 M parameters."""
    return _paper("paper_7b", "SigLIP-so400m + Qwen2.5-7B, 64/144/256 tokens of 1,024 patches", SO400M, QWEN_7B)


def paper_tenth() -> RunConfig[CaptionsData]:
    """The 3 B configuration at a tenth of its widths, at full depth and patch count; runs on a CPU."""
    tower = {**SO400M, "hidden_size": 112, "intermediate_size": 432, "num_attention_heads": 2}
    language = {
        **QWEN_3B,
        "hidden_size": 208,
        "intermediate_size": 1104,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 15232,
    }
    tenth = _paper("paper_tenth", "the 3 B configuration at a tenth of its widths", tower, language)
    return tenth.model_copy(
        update={
            "workers": 1,
            "global_batch": 4,
            "micro_batch": None,
            "zero": ZeroConfig(stage=1),
            "budget": BudgetConfig(steps=20),
            "evaluation": EvaluationConfig(
                counts=GRID_OF_COUNTS, validation_examples=16, test_examples=16, batch_size=4, max_new_tokens=8
            ),
        }
    )


def _paper(name: str, description: str, tower: dict[str, Any], language: dict[str, Any]) -> RunConfig[CaptionsData]:
    return RunConfig[CaptionsData](
        experiment=f"tokendial_workloads.vlm.paper:{name}",
        workload="captions.openmoji",
        description=description,
        workers=8,
        global_batch=256,
        micro_batch=8,
        activation_checkpointing=True,
        model=ModelConfig(
            vision=TowerConfig(kind="siglip_vision_model", config=tower),
            language=LanguageConfig(kind="qwen2", config=language),
            projector="pool",
            pooling="resize_then_avg",
        ),
        schedule=preset("tokenflex", COUNTS),
        data=CaptionsData(text_tokens=128, num_workers=4, image_size=SO400M["image_size"]),
        optimizer=OptimizerConfig(lr=1e-3, tower_lr_factor=0.1, weight_decay=0.0, shape="cosine", warmup=0.03),
        stages=(
            StageConfig(name="projector", share=1, train=("projector",)),
            StageConfig(name="all", share=4, lr_factor=0.02),
        ),
        zero=ZeroConfig(stage=3),
        budget=BudgetConfig(steps=5000),
        evaluation=EvaluationConfig(counts=GRID_OF_COUNTS, max_new_tokens=16),
    )

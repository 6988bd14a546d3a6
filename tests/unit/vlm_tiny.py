"""Tiny models, a tokenizer and a batch for the tests of the vision-language model."""

from typing import Any

import torch
from tokendial.contracts import BudgetConfig, DataConfig, EvaluationConfig, LanguageConfig, ModelConfig, RunConfig
from tokendial.contracts import TowerConfig as Tower
from tokendial.schedule import preset
from tokendial_workloads.vlm.task import ImageTextTask
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["<pad>", "<s>", "</s>", "<image>", "<unk>", *(f"w{i}" for i in range(30))]
COUNTS = {"pool": (1, 4, 16, 25), "pool_after": (1, 4, 9), "query": (1, 3, 16), "mlp": (36,)}

STEM = Tower(
    kind="tokendial_stem",
    config={"image_size": 24, "hidden_size": 16, "stem_width": 8, "num_attention_heads": 2, "intermediate_size": 32},
)
_VIT = {
    "image_size": 24,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SIGLIP = Tower(kind="siglip_vision_model", config=_VIT)
CLIP = Tower(kind="clip_vision_model", config=_VIT)
_LM = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
LLAMA = LanguageConfig(kind="llama", config=_LM)
QWEN2 = LanguageConfig(kind="qwen2", config={**_LM, "tie_word_embeddings": True})


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        chat_template="{{ bos_token }} {% for m in messages %}{% for p in m.content %}"
        "{{ '<image>' if p.type == 'image' else p.text }} {% endfor %}{% endfor %}",
    )


def tiny_task() -> ImageTextTask:
    return ImageTextTask(tiny_tokenizer(), metric="accuracy", licence="CC0-1.0", attribution="nobody")


def tiny_model_config(projector: str = "pool", **fields: Any) -> ModelConfig:
    given = {"vision": STEM, "language": LLAMA, "projector": projector, "max_queries": 16, **fields}
    return ModelConfig.model_validate(given)


def tiny_run(projector: str = "pool", seed: int = 0, **fields: Any) -> RunConfig[DataConfig]:
    return RunConfig[DataConfig](
        experiment="tiny",
        workload="tiny",
        seed=seed,
        model=tiny_model_config(projector, **fields),
        schedule=preset("uniform", COUNTS[projector]),
        data=DataConfig(text_tokens=9),
        budget=BudgetConfig(steps=2),
        evaluation=EvaluationConfig(counts=COUNTS[projector]),
    )


def tiny_batch(rows: int = 3, seed: int = 0) -> dict[str, Any]:
    """Rows of 10 columns whose image sits at column 1 (0 in the first row); the last row ends in two pads."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, 35, (rows, 10), generator=generator)
    input_ids[:, 0] = 1
    input_ids[1:, 1] = 3
    input_ids[0, 0] = 3
    attention_mask = torch.ones_like(input_ids)
    attention_mask[-1, 8:] = 0
    input_ids[-1, 8:] = 0
    labels = torch.full_like(input_ids, -100)
    labels[:, 6:8] = input_ids[:, 6:8]
    labels[0, 4] = input_ids[0, 4]
    return {
        "pixel_values": torch.randn(rows, 3, 24, 24, generator=generator),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
    }

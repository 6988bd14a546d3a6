"""A model from its configuration: random weights or local folders and hub ids, LoRA, activation checkpointing."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from tokendial.contracts import LanguageConfig, ModelConfig, TowerConfig
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase

from .adapters import add_adapters, split_adapters
from .configuration import TokendialConfig
from .counts import check_count
from .model import TokendialForConditionalGeneration
from .sources import load_sources, source_config
from .towers import leading_tokens, patch_grid


@dataclass(frozen=True)
class TextIds:
    """What the model needs to know of a tokenizer."""

    image: int
    pad: int
    eos: int
    bos: int | None
    vocab_size: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, image_token: str = "<image>") -> Self:
        """Ids of a tokenizer; ValueError where it lacks the placeholder, a padding or an end token."""
        image = tokenizer.convert_tokens_to_ids(image_token)
        if not isinstance(image, int) or image == tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no {image_token!r} token")
        pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        if not isinstance(pad, int) or not isinstance(eos, int):
            raise ValueError(f"the tokenizer needs a padding and an end token, got ids {pad} and {eos}")
        bos = tokenizer.bos_token_id
        rows = max(tokenizer.get_vocab().values()) + 1
        return cls(image, pad, eos, bos if isinstance(bos, int) else None, rows)


def build_model(
    config: ModelConfig,
    *,
    ids: TextIds,
    counts: Sequence[int] = (),
    seed: int = 0,
    activation_checkpointing: bool = False,
) -> TokendialForConditionalGeneration:
    """The model, its random weights a function of `seed` alone; the global generator is left as it was.

    Raises ValueError where a trained count is not admissible, or where a source does not fit.
    """
    with seeded(seed, "initialisation"):
        model = TokendialForConditionalGeneration(model_config(config, ids, counts))
        load_sources(model, config)
        if config.lora is not None:
            add_adapters(model, config.lora)
    if activation_checkpointing:
        model.model.language_model.activation_checkpointing_enable()
    return model


def model_config(config: ModelConfig, ids: TextIds, counts: Sequence[int]) -> TokendialConfig:
    """The transformers configuration of a run's model."""
    vision = vision_config(config.vision, config.init_from)
    text = text_config(config.language, ids, config.init_from)
    grid = patch_grid(vision)
    with torch.device("meta"):
        drop_first = leading_tokens(AutoModel.from_config(vision), grid) == 1
    for k in counts:
        check_count(config.projector, grid, config.max_queries, k)
    made = TokendialConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids.image,
        projector=config.projector,
        pooling=config.pooling,
        hidden_factor=config.hidden_factor,
        max_queries=config.max_queries,
        query_keys=config.query_keys,
        vision_feature_layer=config.feature_layer,
        vision_feature_select_strategy="default" if drop_first else "full",
        grid=list(grid),
        counts=list(counts),
    )
    made.pad_token_id, made.eos_token_id, made.bos_token_id = ids.pad, ids.eos, ids.bos
    return made


def vision_config(config: TowerConfig, init_from: str | None = None) -> Any:
    """The tower's own configuration; a pooling head is left out where the tower can do without."""
    source = config.source or init_from
    if source is None:
        made: Any = AutoConfig.for_model(config.kind, **config.config)
    else:
        made = source_config(source, "vision_config", config.config)
    if hasattr(made, "vision_use_head"):
        made.vision_use_head = False
    return made


def text_config(config: LanguageConfig, ids: TextIds, init_from: str | None = None) -> Any:
    """The language model's own configuration, with room for the tokenizer's vocabulary."""
    source = config.source or init_from
    if source is None:
        special = {"pad_token_id": ids.pad, "eos_token_id": ids.eos, "bos_token_id": ids.bos}
        return AutoConfig.for_model(config.kind, **{"vocab_size": ids.vocab_size, **special, **config.config})
    made = source_config(source, "text_config", config.config)
    made.vocab_size = max(made.vocab_size, ids.vocab_size)
    return made


def part_modules(model: TokendialForConditionalGeneration) -> Mapping[str, nn.Module]:
    """`tower`, `projector` and `language` (its head included); together they hold every parameter once.

    Under LoRA `language` is the adapters alone, and `frozen` holds the language model they sit on.
    """
    language = nn.ModuleList([model.model.language_model, model.lm_head])
    parts = {"tower": model.model.vision_tower, "projector": model.model.multi_modal_projector}
    adapters, frozen = split_adapters(language)
    if not len(adapters):
        return {**parts, "language": language}
    return {**parts, "language": adapters, "frozen": frozen}


@contextmanager
def seeded(seed: int, stream: str) -> Iterator[None]:
    """Run with torch's CPU generator set from (seed, stream name), then put it back."""
    key: Any = int.from_bytes(hashlib.blake2b(f"{stream}/{seed}".encode(), digest_size=8).digest(), "big") >> 1
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        yield

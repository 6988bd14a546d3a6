"""A model from its configuration: random weights or local folders and hub ids, LoRA, activation checkpointing."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from tokendial.contracts import LanguageConfig, ModelConfig, TowerConfig
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from .configuration import TokendialConfig
from .counts import check_count
from .model import TokendialForConditionalGeneration
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
        return cls(image, pad, eos, bos if isinstance(bos, int) else None, len(tokenizer))


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
    for k in counts:
        model.config.check_count(k)
    _load_sources(model, config)
    if activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def model_config(config: ModelConfig, ids: TextIds, counts: Sequence[int]) -> TokendialConfig:
    """The transformers configuration of a run's model."""
    vision, text = vision_config(config.vision), text_config(config.language, ids)
    grid = patch_grid(vision)
    with torch.device("meta"):
        drop_first = leading_tokens(AutoModel.from_config(vision), grid) == 1
    for k in counts:
        check_count(config.projector, grid, config.max_queries, k)
    return TokendialConfig(
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
        pad_token_id=ids.pad,
        eos_token_id=ids.eos,
        bos_token_id=ids.bos,
    )


def vision_config(config: TowerConfig) -> PreTrainedConfig:
    """The tower's own configuration; a pooling head is left out where the tower can do without."""
    if config.source is None:
        made = AutoConfig.for_model(config.kind, **config.config)
    else:
        made = AutoConfig.from_pretrained(config.source, **config.config)
        made = getattr(made, "vision_config", made)
    if hasattr(made, "vision_use_head"):
        made.vision_use_head = False
    return made


def text_config(config: LanguageConfig, ids: TextIds) -> PreTrainedConfig:
    """The language model's own configuration, with room for the tokenizer's vocabulary."""
    if config.source is None:
        special = {"pad_token_id": ids.pad, "eos_token_id": ids.eos, "bos_token_id": ids.bos}
        return AutoConfig.for_model(config.kind, **{"vocab_size": ids.vocab_size, **special, **config.config})
    made = AutoConfig.from_pretrained(config.source, **config.config)
    made = getattr(made, "text_config", made)
    made.vocab_size = max(made.vocab_size, ids.vocab_size)
    return made


def _load_sources(model: TokendialForConditionalGeneration, config: ModelConfig) -> None:
    if config.vision.source is not None:
        tower = AutoModel.from_pretrained(config.vision.source)
        copy_weights(model.model.vision_tower, getattr(tower, "vision_model", tower))
    if config.language.source is not None:
        language = AutoModelForCausalLM.from_pretrained(config.language.source)
        copy_weights(model.model.language_model, language.base_model)
        copy_weights(model.lm_head, language.get_output_embeddings())


def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """Copy every parameter of `target` from `source`; rows beyond a smaller source vocabulary keep their own values."""
    theirs = dict(source.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if name not in theirs:
                raise ValueError(f"the source has no weight {name!r}")
            rows = theirs[name].shape[0]
            if theirs[name].shape[1:] != parameter.shape[1:] or rows > parameter.shape[0]:
                raise ValueError(
                    f"weight {name!r} has shape {tuple(theirs[name].shape)} in the source, {tuple(parameter.shape)} here"
                )
            parameter[:rows].copy_(theirs[name])


def part_modules(model: TokendialForConditionalGeneration) -> Mapping[str, nn.Module]:
    """`tower`, `projector` and `language` (its head included)."""
    return {
        "tower": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
        "language": nn.ModuleList([model.model.language_model, model.lm_head]),
    }


@contextmanager
def seeded(seed: int, stream: str) -> Iterator[None]:
    """Run with torch's CPU generator set from (seed, stream name), then put it back."""
    key: Any = int.from_bytes(hashlib.blake2b(f"{stream}/{seed}".encode(), digest_size=8).digest(), "big") >> 1
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        yield

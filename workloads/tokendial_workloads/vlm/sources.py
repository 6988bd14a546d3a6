"""Weights and tokenizers from local folders and hub ids: a tower, a causal LM, or both from a LLaVA-layout model.

Everything is read through `from_pretrained`, from safetensors only, and never with remote code.
"""

from pathlib import Path
from typing import Any

import torch
from tokendial.contracts import ModelConfig
from torch import nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from .model import TokendialForConditionalGeneration
from .vocabulary import IMAGE_TOKEN


def source_config(source: str, part: str, changes: dict[str, Any]) -> Any:
    """The configuration found at `source`, or its `part` where it is a composite, with changed fields."""
    found = AutoConfig.from_pretrained(source)
    made: Any = getattr(found, part, found)
    for name, value in changes.items():
        if not hasattr(made, name):
            raise ValueError(f"the configuration of {source} has no field {name!r}")
        setattr(made, name, value)
    return made


def source_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A language model's tokenizer, the image placeholder added, padding with the end token where it has no other.

    ValueError where it has no end token, without which an answer has no end.
    """
    found: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    if found.eos_token is None:
        raise ValueError(f"the tokenizer of {folder} has no end token; name one in its tokenizer_config.json")
    if IMAGE_TOKEN not in found.get_vocab():
        found.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    if found.pad_token is None:
        found.pad_token = found.eos_token
    return found


def load_sources(model: TokendialForConditionalGeneration, config: ModelConfig) -> None:
    """Copy weights from the sources a configuration names, in place; ValueError where one does not fit."""
    if config.init_from is not None:
        _load_composite(model, config.init_from)
    how: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    if config.vision.source is not None:
        tower = AutoModel.from_pretrained(config.vision.source, config=model.config.vision_config, **how)
        copy_weights(model.model.vision_tower, tower)
    if config.language.source is not None:
        language: Any = AutoModelForCausalLM.from_pretrained(config.language.source, **how)
        _copy_language(model, language.base_model, language.get_output_embeddings())


def _load_composite(model: TokendialForConditionalGeneration, source: str) -> None:
    found: Any = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
    copy_weights(model.model.vision_tower, found.model.vision_tower)
    _copy_language(model, found.model.language_model, found.lm_head)
    if _fits(model.model.multi_modal_projector, found.model.multi_modal_projector):
        copy_weights(model.model.multi_modal_projector, found.model.multi_modal_projector)


def _fits(target: nn.Module, source: nn.Module) -> bool:
    shapes = [{name: weight.shape for name, weight in module.named_parameters()} for module in (target, source)]
    return shapes[0] == shapes[1]


def _copy_language(model: TokendialForConditionalGeneration, body: nn.Module, head: nn.Module) -> None:
    """Rows of the vocabulary past a smaller one of the source keep their own values."""
    copy_weights(model.model.language_model, body, rows_may_end="embed_tokens.weight")
    copy_weights(model.lm_head, head, rows_may_end="weight")


def copy_weights(target: nn.Module, source: nn.Module, rows_may_end: str = "") -> None:
    """Copy every parameter of `target` from `source`; only the one named may have fewer rows there.

    Raises ValueError where another has not the same shape: the rest of it would stay random.
    """
    theirs = dict(source.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if name not in theirs:
                raise ValueError(f"the source has no weight {name!r}")
            shape, own = tuple(theirs[name].shape), tuple(parameter.shape)
            rows = shape[0]
            if shape[1:] != own[1:] or rows > own[0] or (rows < own[0] and name != rows_may_end):
                raise ValueError(f"weight {name!r} is {shape} in the source and {own} here")
            parameter[:rows].copy_(theirs[name])

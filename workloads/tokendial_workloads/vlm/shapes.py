"""Sizes of a tower and a language model, read from a configuration without torch or transformers."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokendial.contracts import LanguageConfig, ModelConfig, TowerConfig

_VIT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
}
_LANGUAGE = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False}

# What transformers fills in where a configuration is silent; a test compares them.
TOWERS: Mapping[str, Mapping[str, Any]] = {
    "siglip_vision_model": {**_VIT, "patch_size": 16},
    "clip_vision_model": {**_VIT, "patch_size": 32},
    "tokendial_stem": {
        "hidden_size": 64,
        "stem_width": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "num_channels": 3,
        "image_size": 48,
        "patch_size": 4,
    },
}
LANGUAGES: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_LANGUAGE, "intermediate_size": 11008},
    "qwen2": {**_LANGUAGE, "intermediate_size": 22016, "num_key_value_heads": 32},
    "qwen3": {**_LANGUAGE, "intermediate_size": 22016, "num_key_value_heads": 32, "head_dim": 128},
    "mistral": {**_LANGUAGE, "intermediate_size": 14336, "num_key_value_heads": 8},
}


@dataclass(frozen=True)
class TowerShape:
    kind: str
    grid: tuple[int, int]
    width: int
    hidden: int
    num_layers: int
    num_channels: int
    patch: int
    stem_width: int

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """Tokens through the blocks: patches and CLIP's class token."""
        return self.num_patches + (self.kind == "clip_vision_model")


@dataclass(frozen=True)
class LanguageShape:
    kind: str
    width: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    vocab_size: int
    tied: bool
    attention_bias: bool
    mlp_bias: bool


def tower_shape(config: ModelConfig) -> TowerShape:
    """Sizes of the vision tower; ValueError for a model type or a hub id whose sizes are not known here."""
    kind, values = tower_values(config)
    size, patch = values["image_size"], values["patch_size"]
    if not isinstance(size, int):
        raise ValueError(f"the cost of a tower is known for square images, got image_size {size}")
    return TowerShape(
        kind=kind,
        grid=(size // patch, size // patch),
        width=values["hidden_size"],
        hidden=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_channels=values["num_channels"],
        patch=patch,
        stem_width=values.get("stem_width", 0),
    )


def language_shape(config: ModelConfig, vocab_size: int) -> LanguageShape:
    """Sizes of the language model, with room for a tokenizer of `vocab_size`; ValueError as for the tower."""
    source = _source(config, config.language)
    kind, values = language_values(config)
    rows = values.get("vocab_size", vocab_size)
    if source is None and rows < vocab_size:
        raise ValueError(f"model.language.config.vocab_size {rows} is less than the {vocab_size} ids of the tokenizer")
    heads = values["num_attention_heads"]
    return LanguageShape(
        kind=kind,
        width=values["hidden_size"],
        hidden=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_width=values.get("head_dim") or values["hidden_size"] // heads,
        vocab_size=rows if source is None else max(rows, vocab_size),
        tied=values["tie_word_embeddings"],
        attention_bias=values.get("attention_bias", False),
        mlp_bias=values.get("mlp_bias", False),
    )


def tower_values(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Model type of the vision tower and its fields, those of the type that nobody set included."""
    part = config.vision
    return _read(part.kind, part.config, _source(config, part), "vision_config", TOWERS)


def language_values(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Model type of the language model and its fields, as for the tower."""
    part = config.language
    return _read(part.kind, part.config, _source(config, part), "text_config", LANGUAGES)


def _source(config: ModelConfig, part: TowerConfig | LanguageConfig) -> str | None:
    return part.source or config.init_from


def _read(
    kind: str, fields: Mapping[str, Any], source: str | None, part: str, known: Mapping[str, Mapping[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """The model type and its values, over the defaults of that type."""
    found: dict[str, Any] = {}
    if source is not None:
        document = json.loads(_config_path(source).read_text(encoding="utf-8"))
        found = document.get(part, document)
        kind = found.get("model_type", kind)
    # Composites of an image and a text tower name their halves' type by the whole's.
    kind = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}.get(kind, kind)
    if kind not in known:
        raise ValueError(f"the cost of model type {kind!r} is not known; known: {', '.join(known)}")
    return kind, {**known[kind], **found, **fields}


def _config_path(source: str) -> Path:
    """The config.json of a local folder, or of a hub id that is in the Hugging Face cache."""
    file = source_file(source, "config.json")
    if file is None:
        raise ValueError(
            f"the sizes of {source!r} cannot be known without its config.json: give a local folder, or a hub id after "
            f"`hf download {source}`"
        )
    return file


def source_file(source: str, name: str) -> Path | None:
    """A file of a local folder, or of a hub id that is in the Hugging Face cache; None where it is not there."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    cached = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub") / f"models--{source.replace('/', '--')}"
    folders = [Path(source)]
    if (cached / "refs" / "main").is_file():
        folders.append(cached / "snapshots" / (cached / "refs" / "main").read_text().strip())
    return next((folder / name for folder in folders if (folder / name).is_file()), None)

"""Where a run's tokenizer lies and how many ids it has, found out without torch or transformers."""

import json
from pathlib import Path
from typing import Any

from tokendial.contracts import ModelConfig

from .shapes import source_file

IMAGE_TOKEN = "<image>"
TOKENIZER = "tokenizer.json"
# Files that tell of a tokenizer, though only the first can be read here.
TRACES = (TOKENIZER, "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def tokenizer_folder(model: ModelConfig) -> Path | None:
    """The folder of `language.tokenizer`, or of the tokenizer beside the language model's weights.

    None where a run starts from random weights, or from a local folder without a tokenizer: the workload's own is used.
    Raises ValueError where a tokenizer is named that is not there, or cannot be used.
    """
    language = model.language
    if language.tokenizer is not None:
        return _folder(language.tokenizer, "model.language.tokenizer")
    source, field = language.source, "model.language.source"
    if source is None:
        source, field = model.init_from, "model.init_from"
    if source is None or (Path(source).is_dir() and not any((Path(source) / name).exists() for name in TRACES)):
        return None
    return _folder(source, field)


def _folder(source: str, field: str) -> Path:
    file = source_file(source, TOKENIZER)
    if file is None:
        raise ValueError(
            f"{field} {source!r} has no {TOKENIZER}: give a local folder that holds one, or a hub id after "
            f"`hf download {source}`"
        )
    return file.parent


def tokenizer_size(folder: Path) -> int:
    """Ids of the tokenizer in a folder, the image placeholder and special tokens that are yet to be added included."""
    document = _document(folder / TOKENIZER)
    settings = _document(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    vocabulary = document.get("model", {}).get("vocab")
    if not isinstance(vocabulary, dict | list) or not vocabulary:
        raise ValueError(f"{folder / TOKENIZER} holds no vocabulary")
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {row[0]: at for at, row in enumerate(vocabulary)}
    ids |= {token["content"]: token["id"] for token in document.get("added_tokens", [])}
    ids |= {token["content"]: int(at) for at, token in settings.get("added_tokens_decoder", {}).items()}
    return max(ids.values()) + 1 + len({IMAGE_TOKEN, *_special(settings)} - ids.keys())


def _special(settings: dict[str, Any]) -> set[str]:
    """Special tokens by name; one that the vocabulary lacks is added to it when the tokenizer is loaded."""
    named = [value for name, value in settings.items() if name.endswith("_token")]
    listed = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    named += listed.values() if isinstance(listed, dict) else listed
    contents = [value.get("content") if isinstance(value, dict) else value for value in named]
    return {content for content in contents if isinstance(content, str)}


def _document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{file} holds a {type(document).__name__}; it must be a JSON object")
    return document

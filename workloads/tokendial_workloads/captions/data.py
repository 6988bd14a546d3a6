"""Datasets of pictures with captions; item i is a pure function of (seed, split, i).

Shapes: B examples, L text positions of which one is the image slot; images [3, S, S] in [-1, 1].
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokendial.contracts import Batch, Example, RunConfig
from tokendial.schedule.draw import mix64, stream_key
from transformers import PreTrainedTokenizerBase

from tokendial_workloads.captions.concepts import SPLITS
from tokendial_workloads.captions.config import CaptionsData
from tokendial_workloads.captions.source import caption_splits, source_digest
from tokendial_workloads.images import decode_image
from tokendial_workloads.vlm.text import IGNORED
from tokendial_workloads.vlm.vocabulary import IMAGE_TOKEN


class Pictures(Sequence[Example]):
    """A split; training pictures come `repeats` times, each time moved by other pixels."""

    def __init__(self, split: str, seed: int, data: CaptionsData, tokenizer: PreTrainedTokenizerBase) -> None:
        self.split, self.seed, self.data, self.tokenizer = split, seed, data, tokenizer
        rows = caption_splits(data.path, data.image_size)[split]
        self._texts, self._concepts, self._groups = rows["text"][:], rows["concept"][:], rows["group"][:]
        self._pixels = np.stack([np.asarray(decode_image(png)) for png in rows["png"]])

    def __len__(self) -> int:
        return len(self._texts) * (self.data.repeats if self.split == "train" else 1)

    def __getitem__(self, index: int) -> Example:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {self.split}, which has {len(self)}")
        row = index % len(self._texts)
        pixels = self._pixels[row]
        if self.split == "train" and self.data.shift:
            pixels = self._moved(pixels, index)
        return {
            "pixel_values": normalised(pixels),
            **text_arrays(self.tokenizer, self._texts[row], self.data.text_tokens + 1),
            "text": self._texts[row],
            "group": self._groups[row],
            "source": self._concepts[row],
        }

    def _moved(self, pixels: np.ndarray, index: int) -> np.ndarray:
        """Moved over white by up to `shift` pixels each way."""
        shift = self.data.shift
        bits = mix64(self.seed, stream_key("captions/shift"), index)
        down, right = (bits >> 40) % (2 * shift + 1), (bits >> 8 & 0xFFFFFFFF) % (2 * shift + 1)
        padded = np.pad(pixels, ((shift, shift), (shift, shift), (0, 0)), constant_values=255)
        return padded[down : down + pixels.shape[0], right : right + pixels.shape[1]]


def normalised(pixels: np.ndarray) -> np.ndarray:
    """RGB bytes [S, S, 3] as the processor hands them on: mean 0.5 and deviation 0.5, float32 [3, S, S]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / 127.5 - 1


def text_arrays(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> dict[str, np.ndarray]:
    """`input_ids`, `attention_mask` and `labels` [length] of a picture and its caption, right-padded."""
    opening = [*_start(tokenizer), tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)]
    answer = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    padding = length - len(opening) - len(answer)
    return {
        "input_ids": np.array([*opening, *answer, *[tokenizer.pad_token_id] * padding], np.int64),
        "attention_mask": np.array([1] * (length - padding) + [0] * padding, np.int64),
        "labels": np.array([*[IGNORED] * len(opening), *answer, *[IGNORED] * padding], np.int64),
    }


def check_texts(tokenizer: PreTrainedTokenizerBase, data: CaptionsData) -> None:
    """Raise ValueError where a caption does not fit into `data.text_tokens`, or the tokenizer cannot write it."""
    texts = sorted({text for rows in caption_splits(data.path, data.image_size).values() for text in rows["text"]})
    written = tokenizer(texts, add_special_tokens=False)["input_ids"]
    special = {index for index in tokenizer.all_special_ids if index != tokenizer.unk_token_id}
    for text, ids in zip(texts, written, strict=True):
        if found := special.intersection(ids):
            names = ", ".join(str(tokenizer.convert_ids_to_tokens(index)) for index in sorted(found))
            raise ValueError(f"the caption {text!r} holds {names}, which the tokenizer keeps for itself; reword it")
        if tokenizer.unk_token_id in ids:
            raise ValueError(f"the tokenizer {tokenizer.name_or_path} cannot write the caption {text!r}")
    longest = max(range(len(texts)), key=lambda at: len(written[at]))
    needed = len(_start(tokenizer)) + len(written[longest]) + 1
    if data.text_tokens < needed:
        raise ValueError(
            f"data.text_tokens {data.text_tokens} is too small: the longest caption, {texts[longest]!r}, needs {needed}"
        )


def _start(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """The beginning of a conversation: a token, or nothing where the tokenizer has none."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


class Captions:
    """The `Data` of the captions workload, written with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def datasets(self, config: RunConfig[Any]) -> Mapping[str, Sequence[Example]]:
        check_texts(self.tokenizer, config.data)
        return {split: Pictures(split, config.seed, config.data, self.tokenizer) for split in SPLITS}

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Arrays become tensors with a leading axis; `text`, `group` and `source` stay lists."""
        batch: Batch = {}
        for key, first in examples[0].items():
            column = [example[key] for example in examples]
            batch[key] = torch.from_numpy(np.stack(column)) if isinstance(first, np.ndarray) else column
        return batch

    def digests(self, config: RunConfig[Any]) -> Mapping[str, str]:
        """Texts and pictures of the split; for train also seed, shift and repeats."""
        data: CaptionsData = config.data
        check_texts(self.tokenizer, data)
        digests = {}
        for split, rows in caption_splits(data.path, data.image_size).items():
            moved = [config.seed, data.shift, data.repeats] if split == "train" else []
            digests[split] = hashlib.sha256(json.dumps([source_digest(rows), *moved]).encode()).hexdigest()
        return digests

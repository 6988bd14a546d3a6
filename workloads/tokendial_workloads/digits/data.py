"""Datasets of mosaics with questions, as arrays; item i is a pure function of (seed, split, i).

Shapes: B examples, L text positions of which one is the image slot; images [3, 48, 48] in [-1, 1].
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from tokendial.contracts import Batch, Example, RunConfig

from tokendial_workloads.digits.config import DigitsData
from tokendial_workloads.digits.mosaic import Mosaic, draw_mosaic, mosaic_stream
from tokendial_workloads.digits.questions import Turn, evaluation_turns, training_turns
from tokendial_workloads.digits.source import SPLITS, digits_by_class, source_digest, source_splits
from tokendial_workloads.digits.tokenizer import digits_tokenizer
from tokendial_workloads.digits.warp import warped
from tokendial_workloads.digits.words import GROUPS
from tokendial_workloads.vlm.text import IGNORED


class Mosaics(Sequence[Example]):
    """A split: training examples hold several turns in one conversation, the others one conversation per question."""

    def __init__(self, split: str, seed: int, data: DigitsData) -> None:
        self.split, self.data = split, data
        self.seed = seed if split == "train" else data.evaluation_seed
        self._digits = digits_by_class(source_splits(data.path, data.invert)[split])
        if split == "train":
            self._digits = [warped(ink, data.warps) for ink in self._digits]

    def __len__(self) -> int:
        return self.data.train_mosaics if self.split == "train" else self.data.evaluation_mosaics

    def __getitem__(self, index: int) -> Example:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(f"mosaic {index} of {self.split}, which has {len(self)}")
        stream = mosaic_stream(self.seed, self.split, index)
        mosaic = draw_mosaic(stream, self._digits)
        example: dict[str, Any] = {
            "pixel_values": pixels(mosaic),
            "cells": np.array(mosaic.cells, np.int64),
            "source": f"{self.split}/{index}",
        }
        if self.split == "train":
            return example | text_arrays(training_turns(mosaic, stream, self.data.turns), self.data.text_tokens + 1)
        turns = evaluation_turns(mosaic, stream)
        return example | text_arrays(turns[:1], self.data.text_tokens + 1) | {"turns": turns}


def pixels(mosaic: Mosaic) -> np.ndarray:
    """White ink on black as the processor hands it on: RGB, mean 0.5 and deviation 0.5, float32 [3, 48, 48]."""
    return np.repeat(mosaic.ink[None] * 2 - 1, 3, axis=0)


def text_arrays(turns: Sequence[Turn], length: int) -> dict[str, np.ndarray]:
    """`input_ids`, `attention_mask` and `labels` of one conversation about one image, right-padded to `length`."""
    ids, labels = list(_opening()), [IGNORED, IGNORED]
    for turn in turns:
        question, answer = _turn_ids(turn)
        ids += question + answer
        labels += [IGNORED] * len(question) + list(answer)
    if len(ids) > length:
        raise ValueError(f"data.text_tokens {length - 1} is too small: {len(turns)} turns need {len(ids) - 1}")
    padding = length - len(ids)
    return {
        "input_ids": np.array(ids + [digits_tokenizer().pad_token_id] * padding, np.int64),
        "attention_mask": np.array([1] * len(ids) + [0] * padding, np.int64),
        "labels": np.array(labels + [IGNORED] * padding, np.int64),
    }


def text_tensors(conversations: Sequence[Sequence[Turn]], length: int, device: torch.device) -> dict[str, torch.Tensor]:
    """`text_arrays` of several conversations as tensors [B, length]."""
    arrays = [text_arrays(turns, length) for turns in conversations]
    return {name: torch.from_numpy(np.stack([row[name] for row in arrays])).to(device) for name in arrays[0]}


@lru_cache(maxsize=1)
def _opening() -> list[int]:
    return digits_tokenizer().encode("<s> <image>")


@lru_cache(maxsize=1024)
def _turn_ids(turn: Turn) -> tuple[list[int], list[int]]:
    tokenizer = digits_tokenizer()
    return tokenizer.encode(turn.question), tokenizer.encode(f"{turn.answer} </s>")


class DigitsMosaics:
    """The `Data` of the digits workload."""

    def datasets(self, config: RunConfig[Any]) -> Mapping[str, Sequence[Example]]:
        return {split: Mosaics(split, config.seed, config.data) for split in SPLITS}

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Arrays become tensors with a leading axis; `source` and `turns` stay lists."""
        batch: Batch = {}
        for key, first in examples[0].items():
            column = [example[key] for example in examples]
            batch[key] = torch.from_numpy(np.stack(column)) if isinstance(first, np.ndarray) else column
        return batch

    def digests(self, config: RunConfig[Any]) -> Mapping[str, str]:
        """Source images of the split, seed and length; for train also turns and warps."""
        data: DigitsData = config.data
        digests = {}
        for split, source in source_splits(data.path, data.invert).items():
            seed = config.seed if split == "train" else data.evaluation_seed
            length = data.train_mosaics if split == "train" else data.evaluation_mosaics
            made = [data.turns, data.warps] if split == "train" else []
            recipe = [source_digest(source), seed, length, GROUPS, *made]
            digests[split] = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
        return digests

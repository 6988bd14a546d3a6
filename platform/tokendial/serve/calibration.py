"""What each step costs on this replica's own device, measured before it takes traffic."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch

from tokendial.contracts.serving import Row, Serving
from tokendial.serve.costs import Costs, Line

_REPEATS = 3
_STEPS = 4
_BATCH = 16


def calibrate(
    serving: Serving, counts: Sequence[int], num_slots: int, pixels: torch.Tensor, prompt: Sequence[int]
) -> Costs:
    """Costs from batches of one and of up to sixteen rows; to be called on the model's thread with no slot taken.

    `prompt` holds one image placeholder, `pixels` [3, H, W] any image.
    """
    batch = min(num_slots, _BATCH)
    images = {rows: pixels.expand(rows, -1, -1, -1) for rows in {1, batch}}
    features = {rows: serving.encode(held) for rows, held in images.items()}
    encode_s = {rows: _timed(partial(serving.encode, held)) for rows, held in images.items()}
    encode = Line.through(encode_s[1], encode_s[batch], batch)
    prefill: dict[int, Line] = {}
    decode: dict[int, Line] = {}
    for count in counts:
        measured = {rows: _answer(serving, features[rows], prompt, count, rows) for rows in {1, batch}}
        prefill[count], decode[count] = (
            Line.through(measured[1][part], measured[batch][part], batch) for part in (0, 1)
        )
    return Costs(encode, prefill, decode, batch)


def _answer(
    serving: Serving, features: torch.Tensor, prompt: Sequence[int], count: int, rows: int
) -> tuple[float, float]:
    """Median seconds of projecting and reading a batch, and of one step of it."""
    reads, steps = [], []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        tokens = serving.project(features, count)
        logits = serving.prefill([Row(prompt, [tokens[row]]) for row in range(rows)])
        ids = logits.argmax(-1).tolist()
        reads.append(time.perf_counter() - began)
        for _ in range(_STEPS):
            began = time.perf_counter()
            ids = serving.decode(ids).argmax(-1).tolist()
            steps.append(time.perf_counter() - began)
        serving.release(range(rows))
    return median(reads), median(steps)


def _timed(function: Callable[[], torch.Tensor]) -> float:
    """Median seconds; reading a value back waits for the device."""
    taken = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        function().flatten()[0].item()
        taken.append(time.perf_counter() - began)
    return median(taken)

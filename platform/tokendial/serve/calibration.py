"""What each step costs on this replica's own device, measured before it takes traffic."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch

from tokendial.contracts.serving import Row, Serving
from tokendial.serve.costs import Costs, Line, Text

_REPEATS = 3
_STEPS = 4
_BATCH = 16
# Tokens of the long text: with its steps 512 columns, as every slot gets as many, whoever asks later.
_TEXT = 508


def calibrate(
    serving: Serving,
    counts: Sequence[int],
    num_slots: int,
    pixels: torch.Tensor,
    prompt: Sequence[int],
    text: Sequence[int],
    most_text: int,
) -> Costs:
    """Costs from batches of one and of up to sixteen rows; to be called on the model's thread with no slot taken.

    `prompt` holds one image placeholder, `text` none, `pixels` [3, H, W] is any image. A row has at most `most_text`
    tokens of text, new ones included.
    """
    batch = min(num_slots, _BATCH)
    images = {rows: pixels.expand(rows, -1, -1, -1) for rows in {1, batch}}
    features = {rows: serving.encode(held) for rows, held in images.items()}
    encode_s = {rows: _timed(partial(serving.encode, held)) for rows, held in images.items()}
    encode = Line.through(encode_s[1], encode_s[batch], batch)
    prefill: dict[int, Line] = {}
    decode: dict[int, Line] = {}
    for count in counts:
        # A GPU's kernels are built for classes of sizes at their first use, which is not to be while requests wait.
        for rows in _groups(num_slots):
            serving.project(features[1].repeat(rows, 1, 1), count)
        measured = {rows: _answer(serving, _images(serving, features[rows], prompt, count)) for rows in {1, batch}}
        prefill[count], decode[count] = (
            Line.through(measured[1][part], measured[batch][part], batch) for part in (0, 1)
        )
    return Costs(encode, prefill, decode, batch, _text(serving, text, min(most_text - _STEPS, _TEXT)))


def _groups(most: int) -> list[int]:
    """Sizes up to `most`, each at most twice the one before."""
    return [*(2**power for power in range(1, most.bit_length()) if 2**power < most), most]


def _text(serving: Serving, text: Sequence[int], many: int) -> Text:
    """What a token of text adds: from one row of this text and one of its last id `many` times."""
    few = len(text)
    if many <= few:
        return Text(few)
    short, long = (_answer(serving, partial(_row, ids)) for ids in (text, [text[-1]] * many))
    return Text(
        few, many, *(max(0.0, more_s - less_s) / (many - few) for less_s, more_s in zip(short, long, strict=True))
    )


def _row(ids: Sequence[int]) -> list[Row]:
    return [Row(ids, [])]


def _images(serving: Serving, features: torch.Tensor, prompt: Sequence[int], count: int) -> Callable[[], list[Row]]:
    """Rows of one image each, projected when they are made."""
    return lambda: [Row(prompt, [tokens]) for tokens in serving.project(features, count)]


def _answer(serving: Serving, rows: Callable[[], list[Row]]) -> tuple[float, float]:
    """Median seconds of making and reading rows, and of one step of them."""
    reads, steps = [], []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        ids = serving.prefill(rows()).argmax(-1).tolist()
        reads.append(time.perf_counter() - began)
        for _ in range(_STEPS):
            began = time.perf_counter()
            ids = serving.decode(ids).argmax(-1).tolist()
            steps.append(time.perf_counter() - began)
        serving.release(range(len(ids)))
    return median(reads), median(steps)


def _timed(function: Callable[[], torch.Tensor]) -> float:
    """Median seconds; reading a value back waits for the device."""
    taken = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        function().flatten()[0].item()
        taken.append(time.perf_counter() - began)
    return median(taken)

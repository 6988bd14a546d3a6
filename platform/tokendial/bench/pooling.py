"""CPU pooling: the workload's op on channels-last features against reading them once, in the same rounds.

Inputs are many times what caches hold and taken in turn, so that each call reads its features from memory, as Triton's
own benchmarks do by clearing the cache before a call.
"""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from tokendial.bench.records import Row, spread

# batch, side of the patch grid, width, side of the pooled grid
SHAPES = ((1, 32, 1152, 8), (1, 32, 1152, 16), (8, 32, 1152, 16), (8, 16, 128, 8), (32, 12, 64, 4))
LEAST_OF_FLOOR = 0.5
INPUT_BYTES = 2**28


def pooling_rows(rounds: int) -> list[Row]:
    """Share of the read floor at each shape: forward, fp32, one thread, by process time."""
    torch.set_num_threads(1)
    return [_row(*shape, rounds) for shape in SHAPES]


def _row(batch: int, side: int, width: int, n: int, rounds: int) -> Row:
    pool = importlib.import_module("tokendial_kernels.pool").pool
    draws = torch.Generator().manual_seed(0)
    shape = batch, side * side, width
    inputs = [torch.randn(shape, generator=draws) for _ in range(-(-INPUT_BYTES // (4 * math.prod(shape))))]
    # A sum reads every feature, adds it once and writes next to nothing: the least that pooling can do.
    calls: dict[str, Callable[[torch.Tensor], object]] = {
        "read": torch.sum,
        "pool": lambda features_BNC: pool(features_BNC, (side, side), n),
    }
    seconds = _in_turns(calls, inputs, rounds)
    shares = [read / own for read, own in zip(seconds["read"], seconds["pool"], strict=True)]
    return Row(
        name="CPU pooling, share of the read floor",
        setting=f"{batch}x{side * side}x{width} to {n * n}, forward",
        unit="share",
        **spread(shares),
        at_least=LEAST_OF_FLOOR,
        floor_s=statistics.median(seconds["read"]),
        samples=dict(seconds),
    )


def _in_turns(
    calls: Mapping[str, Callable[[torch.Tensor], object]], inputs: Sequence[torch.Tensor], rounds: int
) -> Mapping[str, list[float]]:
    """CPU seconds of one call, a mean over all inputs, the calls in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = time.process_time()
            for features_BNC in inputs:
                call(features_BNC)
            if turn:
                seconds[name].append((time.process_time() - began) / len(inputs))
    return seconds

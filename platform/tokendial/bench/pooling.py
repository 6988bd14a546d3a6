"""CPU pooling: the workload's op on channels-last features against moving their bytes once, in the same rounds."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from tokendial.bench.records import Row, spread

# batch, side of the patch grid, width, side of the pooled grid
SHAPES = ((1, 32, 1152, 8), (1, 32, 1152, 16), (8, 32, 1152, 16), (8, 16, 128, 8), (32, 12, 64, 4))
LEAST_OF_FLOOR = 0.5
MIN_CALL_S = 2e-3


def pooling_rows(rounds: int) -> list[Row]:
    """Share of the read floor at each shape: forward, fp32, one thread, by process time."""
    torch.set_num_threads(1)
    return [_row(*shape, rounds) for shape in SHAPES]


def _row(batch: int, side: int, width: int, n: int, rounds: int) -> Row:
    pool = importlib.import_module("tokendial_kernels.pool").pool
    features_BNC = torch.randn(batch, side * side, width, generator=torch.Generator().manual_seed(0))
    # A copy of half as much moves, read and written, as much as pooling must: all features in, n² tokens out.
    source = torch.randn(batch * (side * side + n * n) * width // 2)
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "pool": lambda: pool(features_BNC, (side, side), n),
    }
    seconds = _in_turns(calls, rounds)
    shares = [copy / own for copy, own in zip(seconds["copy"], seconds["pool"], strict=True)]
    return Row(
        name="CPU pooling, share of the read floor at copy speed",
        setting=f"{batch}x{side * side}x{width} to {n * n}, forward",
        unit="share",
        **spread(shares),
        at_least=LEAST_OF_FLOOR,
        floor_s=statistics.median(seconds["copy"]),
        samples=dict(seconds),
    )


def _in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> Mapping[str, list[float]]:
    """CPU seconds of one call, all calls in turn; short ones are repeated within a turn."""
    repeats = {}
    for name, call in calls.items():
        call()
        began = time.process_time()
        call()
        repeats[name] = max(1, round(MIN_CALL_S / (time.process_time() - began)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.process_time()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((time.process_time() - began) / repeats[name])
    return seconds

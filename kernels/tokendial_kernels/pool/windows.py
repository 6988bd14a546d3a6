"""Pooling along one axis as a banded matrix: for each output, the first input it reads and the weights from there on.

Both pooling rules are separable and linear, so out = A_height @ grid @ A_width^T, and the gradient is the same product
with the transposed bands. Three inputs to two outputs give ((0, (1/2, 1/2)), (1, (1/2, 1/2))); the transpose of that is
((0, (1/2,)), (0, (1/2, 1/2)), (1, (1/2,))).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Band = tuple[int, tuple[float, ...]]


class Table(NamedTuple):
    """Bands of equal width on a device: `start` int32 [rows], `weight` float32 [rows, width], padded with weight 0."""

    start: Tensor
    weight: Tensor
    width: int


@lru_cache(maxsize=1024)
def axis_bands(size: int, n: int, method: str) -> tuple[Band, ...]:
    """The bands of the n outputs of an axis of `size` inputs."""
    resized = -(-size // n) * n
    if method == "adaptive_avg" or resized == size:
        edges = [(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]
        return tuple((start, (1 / (end - start),) * (end - start)) for start, end in edges)
    factor = resized // n
    return tuple(_resized_band(size, resized, range(i * factor, (i + 1) * factor)) for i in range(n))


def _resized_band(size: int, resized: int, points: range) -> Band:
    weights: dict[int, float] = {}
    for point in points:
        low, rest = divmod(point * (size - 1), resized - 1)
        upper_share = rest / (resized - 1)
        weights[low] = weights.get(low, 0.0) + (1 - upper_share) / len(points)
        if rest:
            weights[low + 1] = weights.get(low + 1, 0.0) + upper_share / len(points)
    return min(weights), tuple(weights[index] for index in sorted(weights))


@lru_cache(maxsize=1024)
def transposed_bands(size: int, n: int, method: str) -> tuple[Band, ...]:
    """For each of the `size` inputs, the outputs it reaches and with which weights."""
    reached: list[list[tuple[int, float]]] = [[] for _ in range(size)]
    for output, (start, weights) in enumerate(axis_bands(size, n, method)):
        for offset, weight in enumerate(weights):
            reached[start + offset].append((output, weight))
    return tuple((pairs[0][0], tuple(weight for _, weight in pairs)) for pairs in reached)


def axis_matrix(size: int, n: int, method: str, like: Tensor) -> Tensor:
    """The dense [n, size] pooling matrix, in the dtype and on the device of `like`."""
    rows = [[0.0] * start + list(weights) for start, weights in axis_bands(size, n, method)]
    return torch.tensor([row + [0.0] * (size - len(row)) for row in rows], dtype=like.dtype, device=like.device)


def band_table(bands: Sequence[Band], width: int, device: torch.device) -> Table:
    """Pad bands to `width` with weight 0, which the kernels never read under."""
    start = torch.tensor([start for start, _ in bands], dtype=torch.int32, device=device)
    rows = [list(weights) + [0.0] * (width - len(weights)) for _, weights in bands]
    return Table(start, torch.tensor(rows, dtype=torch.float32, device=device), width)


def stacked_table(per_count: Sequence[Sequence[Band]], device: torch.device) -> Table:
    """The bands of several counts one after the other, in one table."""
    bands = [band for bands in per_count for band in bands]
    return band_table(bands, max(len(weights) for _, weights in bands), device)

"""A mosaic: a 4 × 4 grid of handwritten digits, each jittered in its 12-pixel cell, drawn from one integer stream.

Shapes: n digits of a split, 8 × 8 pixels each, ink from 0 (none) to 1; canvas 48 × 48.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokendial.schedule.draw import mix64, stream_key

GRID = 4
CELL = 12
DIGIT = 8
CANVAS = GRID * CELL
_SLACK = CELL - DIGIT + 1


class Stream:
    """Unbounded integers that are a pure function of the key: SplitMix64 in counter mode."""

    def __init__(self, *key: int) -> None:
        self._key = mix64(*key)
        self._drawn = 0

    def below(self, bound: int) -> int:
        """An integer in [0, bound)."""
        self._drawn += 1
        return (mix64(self._key, self._drawn) >> 32) * bound >> 32

    def choice(self, items: Sequence[int]) -> int:
        return items[self.below(len(items))]


@dataclass(frozen=True)
class Mosaic:
    """`cells[4 * row + column]` is the digit there; `ink` is the canvas, float32 in [0, 1]."""

    cells: tuple[int, ...]
    ink: np.ndarray

    def counted(self, fewest: int, most: int) -> list[int]:
        """Digits that appear at least `fewest` and at most `most` times."""
        return [digit for digit in range(10) if fewest <= self.cells.count(digit) <= most]


def mosaic_stream(seed: int, split: str, index: int) -> Stream:
    return Stream(seed, stream_key(f"digits/{split}"), index)


def draw_mosaic(stream: Stream, digits: Sequence[np.ndarray]) -> Mosaic:
    """A mosaic of `digits[class]`, arrays [n, 8, 8]; at least one digit appears once."""
    cells = _draw_cells(stream)
    ink = np.zeros((CANVAS, CANVAS), np.float32)
    for place, digit in enumerate(cells):
        top = CELL * (place // GRID) + stream.below(_SLACK)
        left = CELL * (place % GRID) + stream.below(_SLACK)
        ink[top : top + DIGIT, left : left + DIGIT] = digits[digit][stream.below(len(digits[digit]))]
    return Mosaic(cells, ink)


def _draw_cells(stream: Stream) -> tuple[int, ...]:
    while True:
        cells = tuple(stream.below(10) for _ in range(GRID * GRID))
        if any(cells.count(digit) == 1 for digit in cells):
            return cells

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

    def row(self, row: int) -> tuple[int, ...]:
        return self.cells[GRID * row : GRID * (row + 1)]

    def singles(self, row: int) -> list[int]:
        """Digits that appear exactly once in a row."""
        return _singles(self.row(row))


def mosaic_stream(seed: int, split: str, index: int) -> Stream:
    return Stream(seed, stream_key(f"digits/{split}"), index)


def draw_mosaic(stream: Stream, digits: Sequence[np.ndarray]) -> Mosaic:
    """A mosaic of `digits[class]`, arrays [n, 8, 8]; at least one row has a digit that appears once."""
    cells = _draw_cells(stream)
    ink = np.zeros((CANVAS, CANVAS), np.float32)
    for place, digit in enumerate(cells):
        top = CELL * (place // GRID) + stream.below(_SLACK)
        left = CELL * (place % GRID) + stream.below(_SLACK)
        ink[top : top + DIGIT, left : left + DIGIT] = digits[digit][stream.below(len(digits[digit]))]
    return Mosaic(cells, ink)


def _draw_cells(stream: Stream) -> tuple[int, ...]:
    """Rows with repeats, so that counts vary; drawn again where no row has a digit that appears once."""
    while True:
        cells = tuple(cell for _ in range(GRID) for cell in _draw_row(stream))
        if any(_singles(cells[GRID * row : GRID * (row + 1)]) for row in range(GRID)):
            return cells


def _draw_row(stream: Stream) -> list[int]:
    """After the first, half of the cells repeat one of their row; turned so that each column is alike."""
    cells = [stream.below(10)]
    while len(cells) < GRID:
        cells.append(stream.choice(cells) if stream.below(2) else stream.below(10))
    turn = stream.below(GRID)
    return cells[turn:] + cells[:turn]


def _singles(cells: Sequence[int]) -> list[int]:
    return [digit for digit in cells if cells.count(digit) == 1]

"""Questions about a mosaic in plain words, with answers of one word; rows are a to d from the top, columns 1 to 4.

reading:  "what is b3" → "7"
counting: "how many odd b" → "two" (digits in row b)
place:    "where is 7" → "b3"
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tokendial_workloads.digits.mosaic import GRID, Mosaic, Stream
from tokendial_workloads.digits.words import CELLS, GROUPS, NUMBERS, ROWS

TRIES = 12


class Turn(NamedTuple):
    """One question, its answer and its type."""

    group: str
    question: str
    answer: str

    @property
    def fact(self) -> frozenset[str]:
        """What question and answer say together: "what is b3" and "where is 7" may be the same fact."""
        return frozenset((self.question.split()[-1], self.answer))


def reading(mosaic: Mosaic, stream: Stream) -> Turn:
    cell = stream.below(GRID * GRID)
    return Turn("reading", f"what is {CELLS[cell]}", str(mosaic.cells[cell]))


def counting(mosaic: Mosaic, stream: Stream) -> Turn:
    """Odd digits of one row, zero to four."""
    row = stream.below(GRID)
    digits = mosaic.cells[row * GRID : (row + 1) * GRID]
    return Turn("counting", f"how many odd {ROWS[row]}", NUMBERS[sum(digit % 2 for digit in digits)])


def place(mosaic: Mosaic, stream: Stream) -> Turn:
    """Only a digit that appears once is asked for."""
    digit = stream.choice(mosaic.counted(1, 1))
    return Turn("place", f"where is {digit}", CELLS[mosaic.cells.index(digit)])


QUESTIONS: dict[str, Callable[[Mosaic, Stream], Turn]] = dict(zip(GROUPS, (reading, counting, place), strict=True))


def training_turns(mosaic: Mosaic, stream: Stream, num_turns: int) -> list[Turn]:
    """Turns of alternating types that state no fact twice; where a type has none left, a reading takes its turn.

    Each is found by drawing, so that of 16 turns, as many as a mosaic has cells, one may be stated again.
    """
    first = stream.below(len(GROUPS))
    turns: list[Turn] = []
    while len(turns) < num_turns:
        ask = QUESTIONS[GROUPS[(first + len(turns)) % len(GROUPS)]]
        turns.append(_new(ask, mosaic, stream, turns) or _new(reading, mosaic, stream, turns) or ask(mosaic, stream))
    return turns


def _new(ask: Callable[[Mosaic, Stream], Turn], mosaic: Mosaic, stream: Stream, turns: Sequence[Turn]) -> Turn | None:
    known = {turn.fact for turn in turns}
    return next((turn for turn in (ask(mosaic, stream) for _ in range(TRIES)) if turn.fact not in known), None)


def evaluation_turns(mosaic: Mosaic, stream: Stream) -> Sequence[Turn]:
    """One question of each type, each asked in a conversation of its own."""
    return [ask(mosaic, stream) for ask in QUESTIONS.values()]

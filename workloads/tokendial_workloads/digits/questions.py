"""Questions about a mosaic in plain words, with answers of one word; rows are a to d from the top, columns 1 to 4.

reading:  "what is b3"          → "7"
counting: "how many 7 in row b" → "two"
place:    "where in row b is 7" → "b3"
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tokendial_workloads.digits.mosaic import GRID, Mosaic, Stream
from tokendial_workloads.digits.words import CELLS, GROUPS, NUMBERS, ROWS


class Turn(NamedTuple):
    """One question, its answer and its type."""

    group: str
    question: str
    answer: str


def reading(mosaic: Mosaic, stream: Stream) -> Turn:
    place = stream.below(GRID * GRID)
    return Turn("reading", f"what is {CELLS[place]}", str(mosaic.cells[place]))


def counting(mosaic: Mosaic, stream: Stream) -> Turn:
    """Three times in four the digit is one of the row's own; otherwise any digit, so that zero occurs."""
    row = stream.below(GRID)
    own = sorted(set(mosaic.row(row)))
    digit = stream.choice(own) if stream.below(4) else stream.below(10)
    count = mosaic.row(row).count(digit)
    return Turn("counting", f"how many {digit} in row {ROWS[row]}", NUMBERS[count])


def place(mosaic: Mosaic, stream: Stream) -> Turn:
    """Only a digit that appears once in its row is asked for."""
    row = stream.choice([row for row in range(GRID) if mosaic.singles(row)])
    digit = stream.choice(mosaic.singles(row))
    cell = CELLS[GRID * row + mosaic.row(row).index(digit)]
    return Turn("place", f"where in row {ROWS[row]} is {digit}", cell)


QUESTIONS: dict[str, Callable[[Mosaic, Stream], Turn]] = dict(zip(GROUPS, (reading, counting, place), strict=True))


def training_turns(mosaic: Mosaic, stream: Stream, num_turns: int) -> list[Turn]:
    """Turns of alternating types without a repeated question where the mosaic allows it."""
    first = stream.below(len(GROUPS))
    turns: list[Turn] = []
    for index in range(num_turns):
        ask = QUESTIONS[GROUPS[(first + index) % len(GROUPS)]]
        turn = ask(mosaic, stream)
        for _ in range(8):
            if turn not in turns:
                break
            turn = ask(mosaic, stream)
        turns.append(turn)
    return turns


def evaluation_turns(mosaic: Mosaic, stream: Stream) -> Sequence[Turn]:
    """One question of each type, each asked in a conversation of its own."""
    return [ask(mosaic, stream) for ask in QUESTIONS.values()]

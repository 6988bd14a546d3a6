"""What a request costs on this replica: seconds of each step, measured, as a line over the rows that share it."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Line:
    """Seconds of a step over its rows: a part that all share, and a part each."""

    fixed_s: float
    row_s: float

    @classmethod
    def through(cls, one_s: float, many_s: float, rows: int) -> "Line":
        """The line through one row and `rows` rows; never falling, never negative."""
        if rows == 1:
            return cls(0.0, one_s)
        row_s = max(0.0, (many_s - one_s) / (rows - 1))
        return cls(max(0.0, one_s - row_s), row_s)

    def of(self, rows: int) -> float:
        return self.fixed_s + self.row_s * rows


@dataclass(frozen=True)
class Text:
    """What a row's text costs beyond the `few` tokens of the calibrated prompt: seconds a token of reading it, and of
    each step after it. Measured up to `many` tokens; attention makes more of them dearer than told here."""

    few: int = 0
    many: float = inf
    read_token_s: float = 0.0
    step_token_s: float = 0.0

    def read_s(self, tokens: int) -> float:
        return max(0, tokens - self.few) * self.read_token_s

    def step_s(self, tokens: int) -> float:
        return max(0, tokens - self.few) * self.step_token_s

    def share_s(self, tokens: int, new_tokens: float) -> float:
        """Of a whole answer."""
        return self.read_s(tokens) + max(0.0, new_tokens - 1) * self.step_s(tokens)


@dataclass(frozen=True)
class Costs:
    """Measured steps: `encode` by images, `prefill` and one step of `decode` by a row's visual tokens, then by rows.

    `batch` is how many rows share a step under load. `text` is what tokens of text add, each row's as those of the row
    with the most, as rows are padded.
    """

    encode: Line
    prefill: Mapping[int, Line]
    decode: Mapping[int, Line]
    batch: int
    text: Text = Text()

    def prefill_s(self, visual_tokens: int, rows: int) -> float:
        return _between(self.prefill, visual_tokens, rows)

    def decode_s(self, visual_tokens: int, rows: int, text: int = 0) -> float:
        return _between(self.decode, visual_tokens, rows) + rows * self.text.step_s(text)

    def read_s(self, counts: Sequence[int], rows: int, text: int = 0) -> float:
        """Encoding and reading a batch of equal rows."""
        encode_s = self.encode.of(rows * len(counts)) if counts else 0.0
        return encode_s + self.prefill_s(sum(counts), rows) + rows * self.text.read_s(text)

    def alone_s(self, counts: Sequence[int], new_tokens: float) -> float:
        """A whole answer with nothing else being served."""
        return self._of(counts, new_tokens, 1)

    def share_s(self, counts: Sequence[int], new_tokens: float) -> float:
        """What an answer takes of the replica's time where batches are full."""
        return self._of(counts, new_tokens, self.batch)

    def token_s(self, counts: Sequence[int]) -> float:
        """What one more token of an answer takes of the replica's time where batches are full."""
        return self.decode_s(sum(counts), self.batch) / self.batch

    def _of(self, counts: Sequence[int], new_tokens: float, rows: int) -> float:
        # The first new token comes out of the prefill.
        decode_s = max(0.0, new_tokens - 1) * self.decode_s(sum(counts), rows)
        return (self.read_s(counts, rows) + decode_s) / rows


def _between(lines: Mapping[int, Line], visual_tokens: int, rows: int) -> float:
    """The step at a number of visual tokens, on straight lines between and beyond those measured."""
    known = sorted(lines)
    if len(known) == 1 or visual_tokens in lines:
        return lines[visual_tokens if visual_tokens in lines else known[0]].of(rows)
    right = min(max(bisect_left(known, visual_tokens), 1), len(known) - 1)
    low, high = known[right - 1], known[right]
    low_s, high_s = lines[low].of(rows), lines[high].of(rows)
    slope = max(0.0, high_s - low_s) / (high - low)
    return max(low_s + slope * (visual_tokens - low), 0.1 * min(low_s, high_s))

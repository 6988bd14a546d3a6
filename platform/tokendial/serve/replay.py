"""Whether bent answers still say what full ones would: a sample is written again at full count when nothing else waits.

Agreement is the share of equal answers. The ladder promises at least q(count) + q(full) - 1: both right is one way to
agree. A count that is surely below its promise (95 %, Wilson 1927) is not bent to until fresh evidence is due.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt

_WINDOW = 200
_LEAST = 20
_Z = 1.96


@dataclass
class _Record:
    equal: deque[bool] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    barred_until: float = 0.0


class Agreement:
    """Replays by bent count, over the last two hundred each."""

    def __init__(self, promised: Mapping[int, float], bar_s: float = 600.0) -> None:
        """`promised` is the least agreement by count; a barred count is tried again after `bar_s`."""
        self._promised = dict(promised)
        self._bar_s = bar_s
        self._records = {count: _Record() for count in promised}

    def add(self, count: int, equal: bool, now: float) -> None:
        """Note one replay; where a count falls below its promise it is barred and its evidence starts afresh."""
        record = self._records[count]
        record.equal.append(equal)
        if len(record.equal) >= _LEAST and _highest(sum(record.equal), len(record.equal)) < self._promised[count]:
            record.barred_until = now + self._bar_s
            record.equal.clear()

    def barred(self, now: float) -> frozenset[int]:
        """Counts not to be bent to."""
        return frozenset(count for count, record in self._records.items() if record.barred_until > now)

    def shares(self) -> dict[int, float]:
        """Share of equal answers by count, where there is evidence."""
        return {count: sum(record.equal) / len(record.equal) for count, record in self._records.items() if record.equal}


def _highest(successes: int, trials: int) -> float:
    """Upper end of the Wilson score interval."""
    share, z2 = successes / trials, _Z**2
    centre = share + z2 / (2 * trials)
    spread = _Z * sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return (centre + spread) / (1 + z2 / trials)

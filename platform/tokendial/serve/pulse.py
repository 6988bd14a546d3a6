"""Whether a model still works: passes that fail one after another, or one that does not end."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Literal

# So many different requests are not bad, one after another; a broken device fails every pass, in no time.
MOST_FAILURES = 10
# Far above any pass whose answer somebody still waits for: requests are given up after a minute in the queue.
LONGEST_TURN_S = 300.0
# A long prompt on a slow machine takes longer, and is forecast to; attention makes it dearer than its forecast.
_FORECASTS = 10


class Pulse:
    """What the model's thread notes of itself, and any other may ask."""

    def __init__(self) -> None:
        self._failures = {"read": 0, "write": 0}
        self._failed: dict[str, set[int]] = {"read": set(), "write": set()}
        self._began, self._forecast_s = inf, 0.0

    @contextmanager
    def turning(self) -> Iterator[None]:
        """While the model works."""
        self._forecast_s = 0.0
        self._began = time.monotonic()
        yield
        self._began = inf

    def expect(self, forecast_s: float) -> None:
        """The turn is to take so much longer."""
        self._forecast_s += forecast_s

    def passed(self, kind: Literal["read", "write"]) -> None:
        """A pass gave at least one row its token."""
        self._failures[kind] = 0
        self._failed[kind].clear()

    def failed(self, kind: Literal["read", "write"], requests: Iterable[int]) -> None:
        """A pass raised or gave no row a token; it counts where any of its requests had not failed before."""
        new = set(requests) - self._failed[kind]
        self._failed[kind] |= new
        self._failures[kind] += bool(new)

    def fault(self) -> str | None:
        """Why the model is to be given up, None where it works."""
        for kind, failures in self._failures.items():
            if failures >= MOST_FAILURES:
                return f"{failures} passes to {kind}, each of another request, failed one after another"
        took_s = time.monotonic() - self._began
        longest_s = max(LONGEST_TURN_S, _FORECASTS * self._forecast_s)
        return f"the model has been in one turn for {took_s:.0f} s" if took_s > longest_s else None

"""Whether a model still works: passes that fail one after another, or one that does not end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Literal

# Bad requests that come alone do not fail so often in a row; a broken device fails every pass, in no time.
MOST_FAILURES = 10
# Far above any pass whose answer somebody still waits for: requests are given up after a minute in the queue.
LONGEST_TURN_S = 300.0


class Pulse:
    """What the model's thread notes of itself, and any other may ask."""

    def __init__(self) -> None:
        self._failures = {"read": 0, "write": 0}
        self._began = inf

    @contextmanager
    def turning(self) -> Iterator[None]:
        """While the model works."""
        self._began = time.monotonic()
        yield
        self._began = inf

    def passed(self, kind: Literal["read", "write"], well: bool) -> None:
        """A pass gave at least one row its token, or raised, or gave none."""
        self._failures[kind] = 0 if well else self._failures[kind] + 1

    def fault(self) -> str | None:
        """Why the model is to be given up, None where it works."""
        for kind, failures in self._failures.items():
            if failures >= MOST_FAILURES:
                return f"the last {failures} passes to {kind} all failed"
        took_s = time.monotonic() - self._began
        return f"the model has been in one turn for {took_s:.0f} s" if took_s > LONGEST_TURN_S else None

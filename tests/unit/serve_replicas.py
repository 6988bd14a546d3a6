"""Replicas on a simulated clock that come and go as the autoscaling policy says, and who asks of them.

Each has the engine's own batcher and governor; a request goes to the less busy of two drawn at random, as Ray Serve
routes. Once a second the policy reads means of what was reported in the last seconds; its answer holds after a delay.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from statistics import mean

from serve_simulation import BENDS, COSTS, NEW_TOKENS, ROOM_TOKENS, governor
from tokendial.serve import autoscaling
from tokendial.serve.autoscaling import replicas_for
from tokendial.serve.batching import Batcher, Full, Ticket

_SLOTS, _TARGET_SHARE = 32, 0.5
_REPORT_S, _LOOK_BACK_S, _UP_S, _DOWN_S = 0.1, 11.0, 2, 12


class Replica:
    def __init__(self) -> None:
        self.batcher = Batcher(governor(), max_queue=64)
        self.written: dict[int, int] = {}
        self.reports: deque[dict[str, float]] = deque(maxlen=round(_LOOK_BACK_S / _REPORT_S))
        self.busy = False

    def report(self, now: float) -> None:
        self.batcher.update(now)
        asked = self.batcher.governor
        tokens = self.batcher.wanted_tokens
        self.reports.append(autoscaling.report(tokens, asked.demand_share, asked.crowded, ROOM_TOKENS))

    @property
    def in_flight(self) -> int:
        return self.batcher.num_waiting + len(self.written)

    def turn(self, now: float) -> Iterator[tuple[float, list[int]]]:
        """Seconds of each pass; who ends with the one before."""
        start = self.batcher.start(now, _SLOTS - len(self.written), _SLOTS)
        if start is not None:
            self.written |= dict.fromkeys(start.choices, 1)
            counts = next(iter(start.choices.values())).counts
            yield COSTS.read_s(counts, len(start.choices)), []
            self.batcher.read(start.choices)
        if self.written:
            yield COSTS.decode_s(256, len(self.written)), []
            self.batcher.stepped()
            self.written = {number: written + 1 for number, written in self.written.items()}
            ended = [number for number, written in self.written.items() if written >= NEW_TOKENS]
            for number in ended:
                del self.written[number]
                self.batcher.leave(number, NEW_TOKENS)
            yield 0.0, ended


class Fleet:
    """`history` has the number of replicas second by second."""

    def __init__(self, seed: int) -> None:
        self.now, self.history = 0.0, list[int]()
        self.replicas = [Replica()]
        self._draws, self._order = random.Random(seed), itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._then: dict[int, Callable[[], None]] = {}
        self._up = self._down = 0

    def at(self, when: float, function: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), function))

    def ask(self, then: Callable[[], None] = lambda: None) -> None:
        """One request; `then` is called once it is answered or refused."""
        two = self._draws.sample(self.replicas, min(2, len(self.replicas)))
        replica, number = min(two, key=lambda one: one.in_flight), next(self._order)
        try:
            replica.batcher.admit(Ticket(number, BENDS, self.now, max_new_tokens=NEW_TOKENS), self.now)
        except Full as full:
            self.at(self.now + full.retry_after_s, then)
            return
        self._then[number] = then
        if not replica.busy:
            self._serve(replica, replica.turn(self.now))

    def _serve(self, replica: Replica, turn: Iterator[tuple[float, list[int]]]) -> None:
        took = next(turn, None)
        if took is None and replica.in_flight:
            turn = replica.turn(self.now)
            took = next(turn, None)
        replica.busy = took is not None
        if took is None:
            return
        self.at(self.now + took[0], lambda: self._serve(replica, turn))
        for number in took[1]:
            self.at(self.now, self._then.pop(number))

    def poisson(self, rate: float, until_s: float) -> None:
        """Requests that come whether or not others were answered."""
        self.ask()
        if self.now < until_s:
            self.at(self.now + self._draws.expovariate(rate), lambda: self.poisson(rate, until_s))

    def caller(self, until_s: float = inf) -> None:
        """One who asks again as soon as he has read the answer."""
        if self.now < until_s:
            self.ask(lambda: self.at(self.now + self._draws.uniform(0.0, 0.002), lambda: self.caller(until_s)))

    def run(self, seconds: int) -> None:
        began = len(self.history)
        for second in range(began, began + seconds):
            for report in range(1, round(1 / _REPORT_S) + 1):
                until = second + report * _REPORT_S
                while self._events and self._events[0][0] <= until:
                    self.now, _, function = heapq.heappop(self._events)
                    function()
                self.now = until
                for replica in self.replicas:
                    replica.report(self.now)
            self._scale()
            self.history.append(len(self.replicas))

    def _scale(self) -> None:
        """As Ray Serve does: an answer holds once it was the same way for its delay."""
        means = {
            name: {at: mean(report[name] for report in one.reports) for at, one in enumerate(self.replicas)}
            for name in self.replicas[0].reports[0]
        }
        running = len(self.replicas)
        wanted = replicas_for(means, running, _TARGET_SHARE)
        self._up, self._down = (self._up + 1 if wanted > running else 0), (self._down + 1 if wanted < running else 0)
        if self._up >= _UP_S or self._down >= _DOWN_S:
            self.replicas = (self.replicas + [Replica() for _ in range(wanted)])[:wanted]
            self._up = self._down = 0

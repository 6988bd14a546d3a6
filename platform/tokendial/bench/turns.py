"""Loops that take turns: each runs in a thread of its own and hands over after every step, one at a time.

So a framework's own loop can be timed step by step against another's, in one process and on one set of batches.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

# A loop calls its argument after each of its steps.
Loop = Callable[[Callable[[], None]], None]


class Took(NamedTuple):
    """Wall and CPU seconds of one step; the CPU time is the whole process's."""

    wall_s: float
    cpu_s: float


class _Stopped(Exception):
    """Raised in a loop that is told to end before it is through."""


class Lane:
    """A loop that runs from one hand-over to the next when it is given its turn."""

    def __init__(self, loop: Loop, pool: ThreadPoolExecutor) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped = self._ended = False
        self._future: Future[None] = pool.submit(self._run, loop)

    def turn(self) -> Took:
        """Run one step; raises what the loop raised."""
        began, cpu_began = time.perf_counter(), time.process_time()
        self._go.release()
        self._done.acquire()
        took = Took(time.perf_counter() - began, time.process_time() - cpu_began)
        if self._ended:
            self._future.result()
            raise RuntimeError("a loop ended before its last turn")
        return took

    def stop(self) -> None:
        """End the loop where it stands."""
        self._stopped = True
        self._go.release()

    def _run(self, loop: Loop) -> None:
        self._go.acquire()
        try:
            if not self._stopped:
                loop(self._hand_over)
        except _Stopped:
            return
        finally:
            self._ended = True
            self._done.release()

    def _hand_over(self) -> None:
        self._done.release()
        self._go.acquire()
        if self._stopped:
            raise _Stopped


def take_turns(
    loops: Mapping[str, Loop], rounds: int, seed: int, meet: Callable[[], None]
) -> Mapping[str, Sequence[Took]]:
    """What every step of every loop took; a round has one step of each, in an order drawn anew.

    `meet` is called before each step: a barrier where several processes take the same turns.
    """
    draw = random.Random(seed)
    took: dict[str, list[Took]] = {name: [] for name in loops}
    with ThreadPoolExecutor(max_workers=len(loops)) as pool:
        lanes = {name: Lane(loop, pool) for name, loop in loops.items()}
        try:
            for _ in range(rounds):
                for name in draw.sample(sorted(lanes), len(lanes)):
                    meet()
                    took[name].append(lanes[name].turn())
        finally:
            for lane in lanes.values():
                lane.stop()
    return took

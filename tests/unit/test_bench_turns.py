"""Loops that take turns step by step."""

import threading
import time
from collections.abc import Callable

import pytest
from tokendial.bench.turns import Loop, take_turns

PAUSE_S = 0.02


def counting(name: str, log: list[str], steps: int, pause_s: float = 0.0) -> Loop:
    def loop(step_done: Callable[[], None]) -> None:
        for _ in range(steps):
            time.sleep(pause_s)
            log.append(name)
            step_done()

    return loop


def test_every_round_has_one_step_of_each_loop_in_a_drawn_order() -> None:
    log: list[str] = []
    loops = {name: counting(name, log, 12) for name in "abc"}
    took = take_turns(loops, 12, seed=1, meet=lambda: None)
    rounds = [log[i : i + 3] for i in range(0, 36, 3)]
    assert all(sorted(turns) == ["a", "b", "c"] for turns in rounds)
    assert len({tuple(turns) for turns in rounds}) > 1
    assert {name: len(steps) for name, steps in took.items()} == {"a": 12, "b": 12, "c": 12}


def test_processes_with_one_seed_take_the_same_turns() -> None:
    logs: list[list[str]] = [[], []]
    for log in logs:
        take_turns({name: counting(name, log, 9) for name in "abc"}, 9, seed=3, meet=lambda: None)
    assert logs[0] == logs[1]


def test_a_step_is_timed_from_hand_over_to_hand_over() -> None:
    log: list[str] = []
    loops = {"slow": counting("slow", log, 5, PAUSE_S), "quick": counting("quick", log, 5)}
    took = take_turns(loops, 5, seed=0, meet=lambda: log.append("meet"))
    assert min(step.wall_s for step in took["slow"]) >= PAUSE_S
    assert min(step.wall_s for step in took["quick"]) < PAUSE_S
    assert max(step.cpu_s for step in took["slow"]) < PAUSE_S
    assert log[::2] == ["meet"] * 10


def test_an_error_of_a_loop_is_raised_and_no_thread_is_left() -> None:
    def failing(step_done: Callable[[], None]) -> None:
        step_done()
        raise ArithmeticError("broken step")

    before = threading.active_count()
    with pytest.raises(ArithmeticError, match="broken step"):
        take_turns({"good": counting("good", [], 5), "bad": failing}, 5, seed=0, meet=lambda: None)
    assert threading.active_count() == before


def test_a_loop_that_ends_early_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="before its last turn"):
        take_turns({"short": counting("short", [], 2)}, 3, seed=0, meet=lambda: None)

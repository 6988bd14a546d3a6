"""Asynchronous successive halving on compute spent (Li et al. 2020, "A System for Massively Parallel Hyperparameter
Tuning", MLSys): a trial that reaches a rung goes on if it is among the best 1/eta of those that reached it before.

Rungs are shares of the trial's FLOP allowance, never optimizer steps: schedules change the cost of a step. A trial
shows a curve at every ninth of its steps, so each rung is met at the curve nearest to it.
"""

from collections.abc import Sequence

ETA = 3
NUM_RUNGS = 2
NUM_VALIDATIONS = 9


def rungs() -> tuple[float, ...]:
    """Shares of the allowance at which a trial is judged, rising; the whole allowance is not one."""
    return tuple(ETA ** -(NUM_RUNGS - index) for index in range(NUM_RUNGS))


def validation_steps(horizon: int) -> int:
    """Optimizer steps from one validation curve of a trial of `horizon` steps to the next."""
    return max(1, -(-horizon // NUM_VALIDATIONS))


def reached(share: float, passed: int, shares: Sequence[float]) -> int | None:
    """The highest rung that a trial at `share` of its allowance has come to and is not past yet.

    It has come to a rung from half a validation interval below it on: steps differ in cost, so a curve that is meant
    for the rung lies a little before or after it, and the next one would be too late.
    """
    near = 0.5 / NUM_VALIDATIONS
    new = [index for index, rung in enumerate(shares) if index >= passed and share >= rung - near]
    return new[-1] if new else None


def goes_on(score: float, others: Sequence[float]) -> bool:
    """Whether a score at a rung is among the best 1/ETA of itself and the scores recorded there before."""
    room = max(1, (len(others) + 1) // ETA) if len(others) + 1 >= ETA else len(others) + 1
    return sum(other > score for other in others) < room

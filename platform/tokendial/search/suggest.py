"""The next candidate of a search, as a pure function of space, seed, place in the search and the results so far.

Nothing is kept between suggestions: Optuna's study is told the recorded results anew each time, with a sampler seeded
by the place, so a search that is continued suggests what it would have suggested without the break.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tokendial.schedule.draw import mix64, stream_key
from tokendial.search.domains import Choice, Integers, Scalar
from tokendial.search.objective import MINIMISED

if TYPE_CHECKING:
    import optuna

ALGORITHMS = {
    "grid": "every combination of listed values, grouped by seed",
    "random": "independent draws from the space",
    "optuna": "Optuna's tree-structured Parzen estimator; with several objectives it looks for the Pareto front",
    "asha": "random draws, of which only the best go on at each rung of compute (asynchronous successive halving)",
}
NUM_STARTUP = 8


@dataclass(frozen=True)
class Told:
    """What is known of an earlier trial: its scalars, and its objectives once it has finished (None: not yet)."""

    chosen: Mapping[str, Any]
    values: tuple[float, ...] | None
    state: Literal["running", "finished", "lost"]


def num_combinations(scalars: Mapping[str, Scalar]) -> float:
    """How many different candidates a space can have: infinity where a scalar is continuous."""
    return math.prod(math.inf if (options := _options(scalar)) is None else len(options) for scalar in scalars.values())


def grid(scalars: Mapping[str, Scalar]) -> Iterator[dict[str, Any]]:
    """Every combination of a space that has finitely many, the first path turning slowest and the seed fastest."""
    names = sorted(scalars, key=lambda name: name == "seed")
    options = [_options(scalars[name]) for name in names]
    assert None not in options, "a grid has no continuous scalar"
    return (dict(zip(names, cell, strict=True)) for cell in itertools.product(*filter(None, options)))


def _options(scalar: Scalar) -> Sequence[Any] | None:
    """The values of a scalar that has finitely many."""
    if isinstance(scalar, Choice):
        return scalar.options
    return range(scalar.low, scalar.high + 1) if isinstance(scalar, Integers) else None


def random(scalars: Mapping[str, Scalar], seed: int, place: int, attempt: int = 0) -> dict[str, Any]:
    """An independent draw for a place in the search; another attempt is another draw."""
    return {
        name: scalar.at(mix64(seed, stream_key("search"), stream_key(name), place, attempt) / 2**64)
        for name, scalar in scalars.items()
    }


def parzen(
    scalars: Mapping[str, Scalar],
    seed: int,
    place: int,
    told: Sequence[Told],
    objectives: Sequence[str],
    attempt: int = 0,
) -> dict[str, Any]:
    """What Optuna's TPE samples after the results told, in their order; random draws for the first places."""
    if place < NUM_STARTUP:
        return random(scalars, seed, place, attempt)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    key = mix64(seed, stream_key("tpe"), place, attempt) >> 33
    sampler = optuna.samplers.TPESampler(seed=key, n_startup_trials=1)
    least, most = optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE
    directions = [least if name in MINIMISED else most for name in objectives]
    study = optuna.create_study(sampler=sampler, directions=directions)
    spread = {name: _distribution(scalar) for name, scalar in scalars.items()}
    states = {"running": optuna.trial.TrialState.RUNNING, "finished": optuna.trial.TrialState.COMPLETE}
    for line in told:
        if line.state in states:
            params = {name: _inner(scalar, line.chosen[name]) for name, scalar in scalars.items()}
            trial = optuna.trial.create_trial(
                state=states[line.state], values=line.values, params=params, distributions=spread
            )
            study.add_trial(trial)
    sampled = study.ask(spread).params
    return {name: _outer(scalar, sampled[name]) for name, scalar in scalars.items()}


def _distribution(scalar: Scalar) -> optuna.distributions.BaseDistribution:
    """Optuna's form of a scalar: choices by their index, integers as they are, all else as its place in [0, 1]."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(scalar, Choice):
        return CategoricalDistribution(tuple(range(len(scalar.options))))
    if isinstance(scalar, Integers):
        return IntDistribution(scalar.low, scalar.high)
    return FloatDistribution(0.0, 1.0)


def _inner(scalar: Scalar, value: Any) -> Any:
    if isinstance(scalar, Choice):
        return math.floor(scalar.unit(value) * len(scalar.options))
    return value if isinstance(scalar, Integers) else min(max(scalar.unit(value), 0.0), 1.0)


def _outer(scalar: Scalar, value: Any) -> Any:
    if isinstance(scalar, Choice):
        return scalar.options[value]
    return value if isinstance(scalar, Integers) else scalar.at(value)

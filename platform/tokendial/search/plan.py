"""What a search will do, fixed when it starts: base configuration, space, algorithm, objectives, equal allowance."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tokendial import runs
from tokendial.contracts import RunConfig
from tokendial.experiments import ConfigError, workload
from tokendial.resolve import from_document, resolve
from tokendial.search import budget, warm
from tokendial.search.domains import Choice
from tokendial.search.halving import rungs, validation_steps
from tokendial.search.objective import OBJECTIVES, SCALARS
from tokendial.search.space import Candidate, Space, check_space, describe, from_description
from tokendial.search.suggest import ALGORITHMS
from tokendial.train.driver import with_horizon

TRIAL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,84}")
Algorithm = Literal["grid", "random", "optuna", "asha"]


class SearchPlan(BaseModel):
    """`plan.json`. When a search is continued `trials`, `at_once` and `limit_s` may change; what trials share may not.

    `allowance` is the budget as it was asked for, `flops` what it came to for each trial when the search began;
    `exhausted` says why there is no candidate beyond `trials`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    experiment: str
    overrides: tuple[str, ...]
    base: dict[str, Any]
    space: dict[str, dict[str, Any]]
    algorithm: Algorithm
    objectives: tuple[str, ...]
    seed: int
    trials: int
    allowance: str
    flops: float
    shares_tower: bool
    limit_s: float
    at_once: int | None = None
    exhausted: str | None = None
    user: str
    commit: str = ""

    @property
    def domains(self) -> Space:
        return from_description(self.space)

    @property
    def horizon(self) -> int:
        """Optimizer steps of the base configuration."""
        return with_horizon(from_document(self.base)).budget.horizon or 0

    @property
    def rungs(self) -> tuple[float, ...]:
        """Shares of the allowance at which trials are judged; none where no trial is pruned."""
        return rungs() if self.algorithm == "asha" else ()


def check_request(algorithm: str, objectives: Sequence[str], space: Space) -> None:
    """Raise ConfigError where algorithm, objectives and space do not go together."""
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"--algorithm {algorithm!r} is not one of {', '.join(ALGORITHMS)}")
    if algorithm == "optuna" and find_spec("optuna") is None:
        # It is asked only after some random trials, which would have been trained by then.
        raise ConfigError("--algorithm optuna needs the package 'optuna'; pip install 'tokendial[search]'")
    unknown = [name for name in objectives if name not in OBJECTIVES]
    if unknown or not objectives or len(set(objectives)) != len(objectives):
        raise ConfigError(f"--objectives {','.join(objectives)!r} must name some of {', '.join(OBJECTIVES)}, each once")
    if objectives[0] not in SCALARS:
        raise ConfigError(f"--objectives must begin with one of {', '.join(SCALARS)}, by which trials are ranked")
    if len(objectives) > 1 and algorithm == "asha":
        raise ConfigError(
            f"--objectives {','.join(objectives)!r} are several, and asha prunes on one; use --algorithm optuna"
        )
    if algorithm == "grid":
        listed = [path for path, domain in space.items() if not isinstance(domain, Choice)]
        if listed:
            raise ConfigError(
                f"--algorithm grid needs lists such as schedule=tokenflex,m3 seed=0,1; {listed[0]} is not one"
            )


def trial_config(plan: SearchPlan, candidate: Candidate) -> RunConfig[Any]:
    """The run of a candidate, planned: equal allowance, scored on validation, from the warm tower where there is one.

    Raises ConfigError (or pydantic's ValueError) where the candidate cannot be a run.
    """
    config = resolve(plan.experiment, (*plan.overrides, *candidate.overrides))
    return as_trial(config, plan.flops, plan.shares_tower, bool(plan.rungs))


def as_trial(config: RunConfig[Any], flops: float, shares_tower: bool, judged: bool) -> RunConfig[Any]:
    """A configuration made comparable: its allowance, the split, and curves on the way where trials are judged."""
    if shares_tower:
        config = warm.without_tower(config)
    evaluation = config.evaluation.model_copy(update={"split": "validation"})
    config = budget.with_flops(config.model_copy(update={"evaluation": evaluation}), flops)
    if judged:
        every = validation_steps(config.budget.horizon or 0)
        config = config.model_copy(update={"evaluation": evaluation.model_copy(update={"every": every})})
    return config


def tower_of(plan: SearchPlan, candidate: Candidate) -> RunConfig[Any] | None:
    """The run that warms the tower of a candidate; None where trials warm their own."""
    if not plan.shares_tower:
        return None
    config = resolve(plan.experiment, (*plan.overrides, *candidate.overrides))
    # Of the steps of the base: those that a bound in FLOPs or tokens leaves a candidate depend on its schedule.
    steps = warm.tower_steps(config, plan.horizon)
    return warm.tower_config(config, steps) if steps else None


def fingerprint(plan: SearchPlan) -> str:
    """8 hex digits over what a continued search must share with itself."""
    document = plan.model_dump(mode="json", include=_FIXED)
    document["base"] = {key: value for key, value in document["base"].items() if key not in runs.VOLATILE}
    # Data may move, as between two sessions of a run.
    data = document["base"]["data"].items()
    document["base"]["data"] = {key: value for key, value in data if key not in ("path", "num_workers")}
    return hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=4).hexdigest()


_FIXED = {"experiment", "base", "space", "algorithm", "objectives", "seed", "allowance", "shares_tower"}


def refuse_changes(before: SearchPlan, after: SearchPlan) -> None:
    """Raise ConfigError where a search of this name was something else."""
    if fingerprint(before) == fingerprint(after):
        return
    changed = [name for name in sorted(_FIXED) if getattr(before, name) != getattr(after, name)]
    details = "; ".join(f"{name}: {_shown(getattr(before, name), getattr(after, name))}" for name in changed)
    raise ConfigError(f"search {before.name!r} is another one ({details}); use --new or another --name")


def _shown(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        return ", ".join(f"{key} {before.get(key)} → {after.get(key)}" for key in keys[:3])
    return f"{before} → {after}"


def make_plan(space: Space, **fields: Any) -> SearchPlan:
    """A plan, named `user.experiment.search-<hash>` unless named by hand."""
    name = fields.pop("name", None)
    plan = SearchPlan(name="", space=describe(space), **fields)
    name = name or f"{plan.user}.{runs.plain(plan.experiment)}.search-{fingerprint(plan)}"
    if name == "last" or not TRIAL_NAME.fullmatch(name):
        raise ConfigError(
            f"search name {name!r} is not admissible; use up to 85 letters, digits, `.`, `_` and `-`, and not `last`"
        )
    return plan.model_copy(update={"name": name})


def check_base(config: RunConfig[Any], space: Space, fixed: Sequence[str]) -> None:
    """Raise ConfigError for a space that does not fit the experiment, or a bound that trials cannot share."""
    check_space(space, config, fixed)
    if config.budget.seconds is not None:
        raise ConfigError("budget.seconds cannot bound the trials of a search; give --budget, which becomes FLOPs")


def answer_costs(config: RunConfig[Any]) -> dict[int, float]:
    """FLOPs of one answer at each count of the evaluation grid."""
    from tokendial.model_folder import answer_flops

    cost = workload(config.workload).cost(config)
    return {count: answer_flops(cost, count) for count in config.evaluation.counts}

"""Finding experiments and workloads by name: entry points first, then `module:object`."""

import difflib
import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from tokendial.contracts import RunConfig, Workload


class ConfigError(ValueError):
    """Bad input of a user, in one sentence."""


def experiment_names() -> Mapping[str, str]:
    """Registered experiments as name → module:function."""
    return {point.name: point.value for point in sorted(entry_points(group="tokendial.experiments"))}


def experiment(name: str) -> RunConfig[Any]:
    """The configuration an experiment's function returns; raises ConfigError for an unknown name."""
    found = _load("experiment", name, "tokendial.experiments")
    config = found() if callable(found) else found
    if not isinstance(config, RunConfig):
        kind = type(config).__name__
        raise ConfigError(f"experiment {name!r} gives a {kind}; it must be a function that returns a RunConfig")
    return config.model_copy(update={"experiment": name})


def workload(name: str) -> Workload:
    """The workload of a configuration; raises ConfigError for an unknown name."""
    found = _load("workload", name, "tokendial.workloads")
    if not isinstance(found, Workload):
        raise ConfigError(f"workload {name!r} is a {type(found).__name__}; it must be a Workload")
    return found


def _load(kind: str, name: str, group: str) -> Any:
    known = {point.name: point.value for point in entry_points(group=group)}
    module, colon, attribute = known.get(name, name).partition(":")
    if not colon:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
        raise ConfigError(f"{kind} {name!r} is unknown; near it: {', '.join(near)} (or module:object of your own)")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{kind} {name!r} cannot be imported: {error}") from error

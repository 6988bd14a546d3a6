"""Finding experiments and workloads by name: entry points first, then `module:object`."""

import difflib
import importlib
import tomllib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tokendial.contracts import RunConfig, Workload


class ConfigError(ValueError):
    """Bad input of a user, in one sentence."""


def sentence(error: ValidationError, prefix: str = "") -> str:
    """The first problem of a validation, as one sentence."""
    problem = error.errors(include_url=False)[0]
    where = prefix + ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}; `tokendial train EXPERIMENT --help` lists the keys"
    shown = repr(problem["input"])
    return f"{where} = {shown if len(shown) < 80 else shown[:77] + '...'}: {message[0].lower()}{message[1:]}"


def declared(group: str) -> dict[str, str]:
    """Entry points of a group as name → module:object: of what is installed, and of the source tree we run from."""
    found = {point.name: point.value for point in sorted(entry_points(group=group))}
    tree = Path(__file__).parents[2] / "pyproject.toml"
    if not tree.exists():
        return found
    # What is installed may be an older tokendial than the tree: Ray runs a working folder through PYTHONPATH.
    project = tomllib.loads(tree.read_text("utf-8"))["project"]
    return dict(sorted({**found, **project["entry-points"].get(group, {})}.items()))


def experiment_names() -> Mapping[str, str]:
    """Registered experiments as name → module:function."""
    return declared("tokendial.experiments")


def experiment(name: str) -> RunConfig[Any]:
    """The configuration an experiment's function returns; raises ConfigError for an unknown name."""
    found = _load("experiment", name, "tokendial.experiments")
    config = _called(name, found) if callable(found) else found
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
    known = declared(group)
    module, colon, attribute = known.get(name, name).partition(":")
    if not colon:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"near it: {', '.join(near)}" if near else f"known: {', '.join(sorted(known))}"
        raise ConfigError(f"{kind} {name!r} is unknown; {hint} (or module:object of your own)")
    try:
        return getattr(importlib.import_module(module), attribute)
    # A user's own module can fail in any way as it is imported; that is bad input, not a fault of ours.
    except Exception as error:
        raise ConfigError(f"{kind} {name!r} cannot be imported: {_said(error)}") from error


def _called(name: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    # As above: what a user's own function raises is theirs to read, in one sentence.
    except Exception as error:
        raise ConfigError(f"experiment {name!r} cannot be made: {_said(error)}") from error


def _said(error: Exception) -> str:
    """Kind and first words of an exception, on one line."""
    text = sentence(error) if isinstance(error, ValidationError) else str(error)
    line = " ".join(text.split())
    return f"{type(error).__name__}: {line if len(line) < 300 else line[:297] + '...'}"

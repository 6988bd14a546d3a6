"""The space of a search: dotted configuration paths to domains, candidates in it, and what they make of a run.

`default_space` is the token schedule itself. A space of one's own is a function that returns a mapping, named as
`file.py:function` or `module:function`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokendial.contracts import RunConfig
from tokendial.dotted import keys
from tokendial.experiments import ConfigError
from tokendial.resolve import given
from tokendial.search.domains import (
    Choice,
    CountPower,
    Distillation,
    Domain,
    Integers,
    LogUniform,
    Phases,
    Scalar,
    Simplex,
    Uniform,
)

Space = Mapping[str, Domain]
KINDS = (Choice, CountPower, Distillation, Integers, LogUniform, Phases, Simplex, Uniform)
COUNTS = "schedule.counts"
# What trials are compared on, and what they take of the machine.
SHARED = ("experiment", "workload", "workers", "device", "budget", "evaluation", "tracking")

# The first holds throughout a run, the second takes its place.
LAWS = {"schedule.weights", "schedule.phases"}


@dataclass(frozen=True)
class Candidate:
    """Values of every scalar of a space, and the overrides that they come to."""

    chosen: Mapping[str, Any]
    overrides: tuple[str, ...]


def default_space(base: RunConfig[Any], fixed: Sequence[str] = ()) -> Space:
    """The token schedule of an experiment: counts of its grid, laws over two phases, mix, loss, distillation, rate.

    What the overrides `fixed` give a value, by itself or as part of a preset, is left out.
    """
    own, grid = base.schedule.counts, base.evaluation.counts
    more = [tuple(sorted({*own, count})) for count in grid if count not in own]
    sets = tuple(dict.fromkeys([tuple(own), *more, tuple(grid)]))
    size = max(map(len, sets))
    space: dict[str, Domain] = {
        COUNTS: Choice(sets),
        "schedule.phases": Phases(size),
        "schedule.temperature": LogUniform(0.5, 2.0),
        "schedule.temperature_end": LogUniform(0.5, 2.0),
        "schedule.mix": Choice(("one", "all", "smallest", "sandwich")),
        "schedule.loss_weights": CountPower(-0.25, 0.25),
        "schedule.distil": Distillation(0.1, 2.0),
        "optimizer.projector_lr_factor": LogUniform(0.3, 3.0),
    }
    known = given(fixed, base)
    known |= LAWS if known & LAWS else set()
    return {path: domain for path, domain in space.items() if not any(_within(path, key) for key in known)}


def load_space(reference: str) -> Space:
    """The space that `file.py:function` or `module:function` returns; raises ConfigError where it is none."""
    place, colon, name = reference.rpartition(":")
    if not colon or not name:
        raise ConfigError(f"--space {reference!r} is not of the form my_space.py:function or module:function")
    try:
        found = getattr(_module(place), name)()
    # A user's own file can fail in any way as it is imported or called; that is bad input, not a fault of ours.
    except Exception as error:
        raise ConfigError(f"--space {reference!r} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(f"--space {reference!r} gives a {type(found).__name__}; it must give dotted path → domain")
    return found


def check_space(space: Space, base: RunConfig[Any], fixed: Sequence[str] = ()) -> None:
    """Raise ConfigError for a path that the configuration has not, a value that is no domain, or one without effect.

    `fixed` are the overrides that all trials have.
    """
    fixed_keys = given(fixed, base)
    twice = fixed_keys & space.keys()
    if twice:
        raise ConfigError(f"{min(twice)} has a value and is in the space too; leave one of them out")
    if fixed_keys | space.keys() >= LAWS and LAWS & space.keys():
        raise ConfigError("space: schedule.weights has no effect beside schedule.phases; leave one of them out")
    # The entries of a list have no path of their own.
    known = [key for key in keys(base) if "[]" not in key]
    for path, domain in space.items():
        if not isinstance(path, str):
            raise ConfigError(f"space: {path!r} is a {type(path).__name__}; a path is text such as 'optimizer.lr'")
        if type(domain) not in KINDS:
            kinds = ", ".join(kind.__name__ for kind in KINDS)
            raise ConfigError(f"space: {path} is a {type(domain).__name__}; it must be one of {kinds}")
        inside = path in known or any(path.startswith(f"{key}.") for key in known)
        section = any(key.startswith(f"{path}.") for key in known)
        if not inside and not section:
            raise ConfigError(f"space: unknown key {path!r}; `tokendial train {base.experiment} --help` lists the keys")
        if path.partition(".")[0] in SHARED:
            raise ConfigError(f"space: {path} is the same for every trial, as trials are compared on it")
        if isinstance(domain, Choice):
            _check_options(path, domain)
        if path == COUNTS:
            _check_counts(domain)


def _within(path: str, key: str) -> bool:
    """Whether one of two dotted keys is the other, or is inside of it."""
    return f"{path}.".startswith(f"{key}.") or key.startswith(f"{path}.")


def _check_options(path: str, domain: Choice) -> None:
    try:
        texts = [json.dumps(option) for option in domain.options]
    except TypeError as error:
        raise ConfigError(f"space: {path} has an option that JSON cannot hold: {error}") from error
    repeated = [text for text in texts if texts.count(text) > 1]
    if repeated:
        raise ConfigError(f"space: {path} lists {repeated[0]} more than once")


def _check_counts(domain: Domain) -> None:
    """Other domains are made for the counts of a candidate, so each of its options must be a list of counts."""
    options = domain.options if isinstance(domain, Choice) else (domain,)
    for option in options:
        whole = isinstance(option, list | tuple) and option and all(type(one) is int and one > 0 for one in option)
        if not whole:
            raise ConfigError(
                f"space: {COUNTS} may be {option!r}, which is no list of token counts; give one set as "
                f"{COUNTS}=[4,16,144], several as {COUNTS}=[4,16],[4,144]"
            )


def scalars(space: Space) -> dict[str, Scalar]:
    """Every scalar parameter of a space by name."""
    return {name: scalar for path, domain in space.items() for name, scalar in domain.scalars(path).items()}


def candidate(space: Space, chosen: Mapping[str, Any], base: RunConfig[Any]) -> Candidate:
    """The overrides that chosen scalars come to over an experiment; raises ValueError where they cannot be."""
    counts = tuple(chosen.get(COUNTS, base.schedule.counts))
    values = {path: domain.value(path, chosen, counts) for path, domain in space.items()}
    if isinstance(space.get("schedule.phases"), Phases):
        # The law of `weights` must fit the counts though phases take its place.
        values.setdefault("schedule.weights", values["schedule.phases"][-1]["weights"])
    return Candidate(dict(chosen), tuple(f"{path}={_text(value)}" for path, value in values.items()))


def label(overrides: Sequence[str]) -> str:
    """Overrides without the seed: what trials that differ only in their seed have in common."""
    return " ".join(line for line in overrides if not line.startswith("seed=")) or "the experiment itself"


def describe(space: Space) -> dict[str, Any]:
    """The space as JSON: what a search is recorded with, and a changed one is refused by."""
    lines = {path: {"kind": type(domain).__name__, **asdict(domain)} for path, domain in space.items()}  # type: ignore[call-overload]
    return json.loads(json.dumps(lines))


def from_description(document: Mapping[str, Mapping[str, Any]]) -> Space:
    """The space that `describe` described."""
    kinds = {kind.__name__: kind for kind in KINDS}
    found: dict[str, Domain] = {}
    for path, line in document.items():
        fields: dict[str, Any] = {
            name: tuple(value) if name == "options" else value for name, value in line.items() if name != "kind"
        }
        found[path] = kinds[line["kind"]](**fields)
    return found


def coordinates(space: Space, chosen: Mapping[str, Any]) -> list[float]:
    """Chosen scalars as numbers in [0, 1], in the order of `scalars`."""
    return [scalar.unit(chosen[name]) for name, scalar in scalars(space).items()]


def _module(place: str) -> Any:
    path = Path(place)
    if path.suffix != ".py":
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {place}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _text(value: Any) -> str:
    """An override's right-hand side: JSON, but bare words for strings, as `schedule=tokenflex` names a preset."""
    bare = isinstance(value, str) and isinstance(_value(value), str)
    return value if bare else json.dumps(value)


def lists(overrides: Sequence[str]) -> tuple[list[str], dict[str, Choice]]:
    """Overrides of one value, and those that list several (`seed=0,1,2`), as domains."""
    single: list[str] = []
    several: dict[str, Choice] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        options = split(text)
        if equals and len(options) > 1:
            if key in several:
                raise ConfigError(f"duplicate key {key!r}; give each key once")
            several[key] = Choice(tuple(_value(option) for option in dict.fromkeys(options)))
        else:
            single.append(override)
    return single, several


def split(text: str) -> list[str]:
    """The values of a list, cut at commas outside brackets and quotes."""
    depth, quoted, parts = 0, False, [""]
    for before, letter in zip(" " + text, text, strict=False):
        quoted ^= letter == '"' and before != "\\"
        depth += 0 if quoted else (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text

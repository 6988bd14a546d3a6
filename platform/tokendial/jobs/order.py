"""What a cluster is asked to do: a command, the run it is for, and the files that it reads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tokendial import identity, runs
from tokendial.contracts import RunConfig
from tokendial.experiments import ConfigError
from tokendial.jobs import package

CONFIG = "config.json"
# Options that a search may be continued with another value of, and so are no part of its name.
CHANGEABLE = ("trials", "limit", "at-once", "retry", "new")
# Where a configuration may name a folder, a file or a hub id.
PLACES = (
    "data.path",
    "model.init_from",
    "model.vision.source",
    "model.language.source",
    "model.language.tokenizer",
)
# Where a tracking server is named: in a configuration, and by an option.
TRACKING = ("tracking.uri", "--tracking-uri")


@dataclass(frozen=True)
class Order:
    """`tokendial ARGUMENTS` on the cluster, in a folder that holds `files`; `run` is the name it is found by."""

    run: str
    arguments: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)


def training_order(
    config: RunConfig[Any], name: str | None = None, new: bool = False, source: str | None = None
) -> Order:
    """The order to train a resolved configuration; raises ConfigError for what the cluster could not read."""
    from tokendial.train.driver import with_horizon

    config = with_horizon(config)
    check_places(config.model_dump(mode="json"))
    if source == "last":
        raise ConfigError("--from last is this machine's last run; give the name of a run of the cluster")
    ending = f"-from-{runs.short_name(source)}" if source else ""
    name = runs.checked_name(name or runs.run_name(config, identity.user_name()) + ending)
    arguments = ["train", "--config", CONFIG, "--name", name, "--json"]
    arguments += ["--new"] if new else []
    arguments += ["--from", source] if source else []
    return Order(name, tuple(arguments), run_files(config))


def search_order(
    experiment: str, overrides: Sequence[str], options: Mapping[str, object], name: str | None, space: str | None
) -> Order:
    """The order to search; the same command has the same name, so it continues the search or shows its result."""
    from tokendial.resolve import resolve
    from tokendial.search.space import lists

    single, several = lists(overrides)
    config = resolve(experiment, single, machine_cpus=None, elsewhere=True)
    check_places(config.model_dump(mode="json"))
    for key, listed in several.items():
        for option in listed.options:
            check_places({key: option})
    space = with_slashes(space) if space else None
    what = [experiment, *overrides, *(["--space", space] if space else [])]
    words = [*what, *_words(options)]
    fixed = [*what, *_words({option: value for option, value in options.items() if option not in CHANGEABLE})]
    digest = hashlib.blake2b(json.dumps(fixed).encode(), digest_size=4).hexdigest()
    name = runs.checked_name(name or f"{identity.user_name()}.{runs.plain(experiment)}.search-{digest}")
    modules = package.modules(config.experiment, config.workload, *([space] if space else []))
    return Order(name, ("search", *words, "--name", name, "--json"), modules)


def with_slashes(space: str) -> str:
    """A space as the cluster reads it: Windows separates folders by backslashes, archives and clusters by slashes."""
    place, _, function = space.rpartition(":")
    return f"{Path(place).as_posix()}:{function}" if place.endswith(".py") else space


def evaluation_order(model: str, options: Mapping[str, object]) -> Order:
    """The order to score a run or a folder of the cluster; `options` are `tokendial eval`'s, None where not given."""
    _check_model(model, "score")
    return Order(f"eval.{runs.plain(model)}", ("eval", model, *_words(options), "--json"))


def serving_order(model: str, overrides: Sequence[str], options: Mapping[str, object]) -> Order:
    """The order to serve a run of the cluster or a registered model, until it is stopped."""
    _check_model(model, "serve")
    settings = {key: value for key, _, value in (word.partition("=") for word in overrides)}
    check_places(settings | {f"--{name}": value for name, value in options.items()})
    words = ("serve", *overrides, "--model", model, *_words(options), "--json")
    return Order(f"serve.{runs.plain(model)}", words)


def _check_model(model: str, what: str) -> None:
    if model == "last" or _is_here_only(model):
        raise ConfigError(
            f"model {model!r} is of this machine; give the name of a run of the cluster, or leave out --on to {what} "
            "it here"
        )


def _words(options: Mapping[str, object]) -> list[str]:
    """Options as words: None and False are left out, True is the option alone, a list gives it again and again."""
    words: list[str] = []
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None and one is not False:
                words += [f"--{name}"] if one is True else [f"--{name}", str(one)]
    return words


def run_files(config: RunConfig[Any]) -> dict[str, bytes]:
    """The resolved configuration and the user's own modules that it names."""
    document = json.dumps(config.model_dump(mode="json"), indent=2).encode()
    return {CONFIG: document, **package.modules(config.experiment, config.workload)}


def check_places(document: Mapping[str, Any]) -> None:
    """Raise ConfigError where a configuration holds a password, or a path that only this machine can read."""
    for key, text in _strings(document):
        parts = urlsplit(text) if "://" in text else None
        if parts is not None and "@" in parts.netloc:
            shown = text.replace(parts.netloc.rpartition("@")[0], "***")
            raise ConfigError(
                f"{key} {shown!r} came with a user or password, which would be stored with the job; leave it out and "
                "let the cluster's secret hold it (AWS_…, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"
            )
        if key in TRACKING and text.startswith("sqlite:"):
            raise ConfigError(
                f"{key} {text!r} is a file of this machine; leave it out for the cluster's own, or give "
                "http(s)://HOST:PORT of an MLflow server"
            )
        if key in PLACES and parts is None and _is_here_only(text):
            raise ConfigError(
                f"{key} {text!r} is a path of this machine, which the cluster cannot read; put it on storage that is "
                "mounted at the same path here and on the cluster, and name the mount in TOKENDIAL_SHARED"
            )


def _is_here_only(text: str) -> bool:
    """Whether a path lies on this machine and under no folder of TOKENDIAL_SHARED; a hub id lies nowhere here."""
    path = Path(text).expanduser()
    if not path.exists():
        return text.startswith((".", "~"))
    shared = [Path(folder).resolve() for folder in os.environ.get("TOKENDIAL_SHARED", "").split(os.pathsep) if folder]
    return not any(path.resolve().is_relative_to(folder) for folder in shared)


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a document with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _strings(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{key}.{index}")

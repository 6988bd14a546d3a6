"""Where a served model comes from: a folder, a run, or the registry (pinned to a version, or followed by an alias)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokendial import runs
from tokendial.experiments import ConfigError
from tokendial.model_folder import CARD, DIGESTS, LADDER, read_card

if TYPE_CHECKING:
    from tokendial.tracking.registry import ModelVersion


@dataclass(frozen=True)
class Source:
    """One version of a model. `folder` is set where it lies in one, else it is fetched from the registry at `uri`.

    `digest` is of all files of a registered version: where a model was removed, its numbers begin anew.
    """

    name: str
    version: str
    folder: str | None = None
    uri: str | None = None
    registered: str | None = None
    digest: str = ""

    def fetch(self) -> Path:
        """The model's folder on this machine, checked; raises ConfigError."""
        if self.folder is not None:
            return Path(self.folder)
        from tokendial.tracking.registry import fetch, resolve

        assert self.uri is not None
        assert self.registered is not None
        found = resolve(self.uri, self.registered)
        if _digest(found) != self.digest:
            raise ConfigError(f"{self.registered} was removed, and another model registered in its place")
        to = runs.home() / "served" / f"{self.registered.replace('/', '-')}-{self.digest[:12]}"
        return fetch(self.uri, found, to)


@dataclass(frozen=True)
class Followed:
    """An alias whose version is served, whichever it is."""

    uri: str
    name: str
    alias: str


def locate(model: str | None, uri: str, served_as: str | None) -> tuple[Source, Followed | None]:
    """What `--model` means: a folder, a run, `NAME/7` (pinned), `NAME` or `NAME@alias` (followed).

    None is the champion of the registry at `uri` where it has one only, else the last run. Raises ConfigError that says
    what was looked for.
    """
    if model is None:
        model = _champion(uri) or "last"
    folder = Path(model)
    if (folder / CARD).is_file():
        return _from_folder(folder, served_as), None
    run = _run(model)
    if run is not None:
        if not (run.model / CARD).is_file():
            raise ConfigError(f"run {run.name!r} has no exported model; train it to its end first")
        return _from_folder(run.model, served_as), None
    if folder.is_dir():
        raise ConfigError(f"--model {model!r} is a folder without {CARD}; give an exported one, or a run")
    return _registered(model, uri, served_as)


def _champion(uri: str) -> str | None:
    from tokendial.tracking.registry import champions

    found = champions(uri)
    if len(found) > 1:
        raise ConfigError(f"several models have a champion: {', '.join(found)}; give --model with one of them")
    return found[0] if found else None


def _run(model: str) -> runs.Run | None:
    try:
        return runs.find(model)
    except ConfigError:
        return None


def registered(uri: str, version: ModelVersion, served_as: str | None) -> Source:
    """A version in the registry."""
    reference = f"{version.name}/{version.version}"
    return Source(
        served_as or version.name, str(version.version), uri=uri, registered=reference, digest=_digest(version)
    )


def _digest(version: ModelVersion) -> str:
    return version.tags.get(f"sha256.{DIGESTS}", "")


def _from_folder(folder: Path, served_as: str | None) -> Source:
    card = read_card(folder)
    if not (folder / LADDER).is_file():
        raise ConfigError(f"{str(folder)!r} has no {LADDER}; export the model again")
    return Source(served_as or card.workload, card.run, folder=str(folder.resolve()))


def _registered(model: str, uri: str, served_as: str | None) -> tuple[Source, Followed | None]:
    from tokendial.tracking.registry import CHAMPION, resolve

    try:
        found = resolve(uri, model)
    except ConfigError as error:
        raise ConfigError(f"--model {model!r} is no model folder and no run of {runs.home()}; {error}") from None
    source = registered(uri, found, served_as)
    if "/" in model:
        return source, None
    return source, Followed(uri, found.name, model.partition("@")[2] or CHAMPION)

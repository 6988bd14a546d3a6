"""The model registry: exported folders as versions of a named model, and the alias that an endpoint serves.

A version's files are held to the digests that its folder was sealed with: `SHA256SUMS` lists every file, and tags of
the version hold the SHA-256 of that list and of each weights file. Who moved an alias, when, why and from which version
are tags of the registered model, oldest first by name.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion as StoredVersion
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from tokendial import runs
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.model_folder import DIGESTS, LADDER, check_digests
from tokendial.tracking.opening import experiment_id
from tokendial.tracking.server import AWAY, connect, patient, probe, reason
from tokendial.tracking.uri import redact
from tokendial.train.checkpoint import sha256

CHAMPION = "champion"
_MOVE = "tokendial.alias."
_PAGE = 1000


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model; `tags` hold its digests and what else it was registered with."""

    name: str
    version: int
    run_id: str | None
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Move:
    """The champion was moved to `version`; `before` is the version it was, None where there was none."""

    version: int
    before: int | None
    by: str
    reason: str
    time: float
    back: bool = False


def resolve(uri: str, reference: str) -> ModelVersion:
    """The version that `NAME` (its champion), `NAME/7` or `NAME@alias` means; ConfigError says what there is."""
    name, _, number = reference.partition("/")
    name, _, alias = (name, "", "") if number else reference.partition("@")
    if number and not number.isdigit():
        raise ConfigError(f"model {reference!r} is not of the form NAME, NAME/VERSION or NAME@ALIAS")
    with _reached(uri) as client:
        model = _model(client, uri, name)
        wanted = number or model.aliases.get(alias or CHAMPION)
        if wanted is None:
            known = ", ".join(f"@{key} = version {value}" for key, value in sorted(model.aliases.items()))
            raise ConfigError(f"model {name!r} has no alias {alias or CHAMPION!r}; it has {known or 'none'}")
        found = _versions(client, name)
        if int(wanted) not in found:
            raise ConfigError(f"model {name!r} has no version {wanted}; it has {_listed(found)}")
        return found[int(wanted)]


def fetch(uri: str, version: ModelVersion, to: Path) -> Path:
    """Download a version's folder to `to` and hold every file to the version's digests; ConfigError where one differs.

    A folder that is there already is checked and not downloaded again.
    """
    if not to.exists() or not any(to.iterdir()):
        to.parent.mkdir(parents=True, exist_ok=True)
        with _reached(uri) as client, patient(), TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as partial:
            source = client.get_model_version_download_uri(version.name, str(version.version))
            whole = download_artifacts(artifact_uri=source, dst_path=partial, tracking_uri=uri)
            # Renamed once whole: a download that was cut short must not pass for a folder that was tampered with.
            try:
                Path(whole).replace(to)
            except OSError:
                # Another replica was first; what it left is checked below, as any folder that is there.
                if not (to / DIGESTS).is_file():
                    raise
            Path(partial).mkdir(exist_ok=True)
    if not (to / DIGESTS).is_file():
        raise ConfigError(f"{version.name}/{version.version} has no {DIGESTS}, so its files cannot be checked")
    check_digests(to)
    for tag, digest in digest_tags(to).items():
        if version.tags.get(tag) != digest:
            raise ConfigError(f"{version.name}/{version.version} is not what was registered: its {tag} differs")
    return to


def checked_name(name: str) -> str:
    """A name that a model may have; raises ConfigError."""
    if not runs.NAME.fullmatch(name):
        raise ConfigError(f"model name {name!r} is not admissible; use up to 100 letters, digits, `.`, `_` and `-`")
    return name


def register(uri: str, name: str, folder: Path, run_id: str | None, tags: Mapping[str, str]) -> ModelVersion:
    """Make a sealed model folder a version of `name`; a folder that is one already is found, not registered again."""
    checked_name(name)
    check_digests(folder)
    own = digest_tags(folder)
    with _reached(uri) as client, patient():
        _create_model(client, name)
        for version in _versions(client, name).values():
            if own.items() <= version.tags.items():
                return version
        model_id, place = _upload(client, uri, name, folder, run_id)
        # A store opened here, unlike a server, looks a model up at the process's own default address.
        remote = uri.startswith("http")
        source, link = (f"models:/{model_id}" if remote else place), (model_id if remote or run_id else None)
        about = ladder_markdown(folder)
        stored = client.create_model_version(name, source, run_id, {**tags, **own}, description=about, model_id=link)
        return _version(stored)


def ladder_markdown(folder: Path) -> str:
    """The folder's ladder as MLflow's page of a version shows it; empty where there is none."""
    if not (folder / LADDER).is_file():
        return ""
    ladder = json.loads((folder / LADDER).read_text("utf-8"))
    lines = ["| tokens per image | quality | GFLOPs an answer | latency, ms |", "|---|---|---|---|"]
    for row in ladder["rows"]:
        latency = row.get("latency_ms")
        shown = "" if latency is None else f"{latency:.1f}"
        lines.append(f"| {row['count']} | {row['quality']:.3f} | {row['cost_flops'] / 1e9:.3g} | {shown} |")
    return f"Ladder on {ladder.get('split', 'none')}\n\n" + "\n".join(lines)


def move_alias(uri: str, name: str, version: int, by: str, reason: str, back: bool = False) -> Move:
    """Make a version the champion and record who did so, when, why and from which version."""
    with _reached(uri) as client:
        model = _model(client, uri, name)
        found = _versions(client, name)
        if version not in found:
            raise ConfigError(f"model {name!r} has no version {version}; it has {_listed(found)}")
        before = model.aliases.get(CHAMPION)
        move = Move(version, int(before) if before else None, by, reason, time.time(), back)
        # The record first: an alias must never be where no record says it went.
        client.set_registered_model_tag(name, f"{_MOVE}{time.time_ns():020d}", json.dumps(move.__dict__))
        client.set_registered_model_alias(name, CHAMPION, str(version))
        return move


def rollback(uri: str, name: str, by: str, reason: str) -> Move:
    """Move the champion back to the version that was it before; done twice it goes back twice."""
    with _reached(uri) as client:
        now = _model(client, uri, name).aliases.get(CHAMPION)
    if now is None:
        raise ConfigError(f"model {name!r} has no {CHAMPION}, so there is none to move back")
    held = _held(history(uri, name))
    _be_at(int(now), held)
    if len(held) < 2:
        raise ConfigError(f"model {name!r} has no version that was {CHAMPION} before; it can only be moved forward")
    return move_alias(uri, name, held[-2], by, reason, back=True)


def _held(moves: Iterable[Move]) -> list[int]:
    """Versions by the times that an alias came to them, those it was moved back from left out.

    A move by other means left no record but the next one's `before`; one that was cut short has a record, and the
    alias never was there.
    """
    held: list[int] = []
    for move in moves:
        known = [move.before] if move.back else [move.before, move.version]
        if move.before is not None and (not held or held[-1] not in known):
            _be_at(move.before, held)
        if move.back:
            held.pop()
        elif held[-1:] != [move.version]:
            held.append(move.version)
    return held


def _be_at(version: int, held: list[int]) -> None:
    """Bring what the records say to where the alias is: before the last move, where that one never came about."""
    if held[-2:-1] == [version] and held[-1] != version:
        held.pop()
    elif held[-1:] != [version]:
        held.append(version)


def history(uri: str, name: str) -> list[Move]:
    """Every move of the champion, oldest first."""
    with _reached(uri) as client:
        tags = _model(client, uri, name).tags
    return [_read(tags[key]) for key in sorted(tags) if key.startswith(_MOVE)]


def _read(record: str) -> Move:
    """A recorded move; what another release says beside is passed over."""
    document = json.loads(record)
    return Move(**{field.name: document[field.name] for field in fields(Move) if field.name in document})


def versions(uri: str, name: str) -> list[ModelVersion]:
    """Every version of a model, oldest first; none where there is no such model."""
    with _reached(uri) as client:
        return list(_versions(client, name).values())


def names(uri: str) -> list[str]:
    """Every registered model."""
    with _reached(uri) as client:
        return [model.name for model in _models(client)]


def champions(uri: str) -> list[str]:
    """Every registered model that has a champion."""
    with _reached(uri) as client:
        return [model.name for model in _models(client) if CHAMPION in model.aliases]


def champion(uri: str, name: str) -> ModelVersion | None:
    """The version that a registered model's alias `champion` is on; None where it is on none."""
    with _reached(uri) as client:
        return resolve(uri, name) if CHAMPION in _model(client, uri, name).aliases else None


def digest_tags(folder: Path) -> dict[str, str]:
    """Tags by which a version's files are known: the digest of its list of digests, and those of its weights."""
    weights = sorted(path for path in folder.rglob("*.safetensors"))
    named = {f"sha256.{path.relative_to(folder).as_posix()}": sha256(path) for path in weights}
    return {f"sha256.{DIGESTS}": sha256(folder / DIGESTS), **named}


@contextmanager
def _reached(uri: str) -> Iterator[MlflowClient]:
    """A client of the registry; WorkFailed where it does not answer."""
    try:
        probe(uri)
        yield connect(uri)
    except AWAY as error:
        raise WorkFailed(f"model registry {redact(uri)} is not usable ({reason(error, uri)})") from error


def _models(client: MlflowClient) -> Iterator[RegisteredModel]:
    page = client.search_registered_models(max_results=_PAGE)
    yield from page
    while page.token:
        page = client.search_registered_models(max_results=_PAGE, page_token=page.token)
        yield from page


def _model(client: MlflowClient, uri: str, name: str) -> RegisteredModel:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    known = ", ".join(model.name for model in client.search_registered_models(max_results=20)) or "none yet"
    raise ConfigError(f"model {name!r} is not registered at {redact(uri)}; registered there: {known}")


def _create_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions(client: MlflowClient, name: str) -> dict[int, ModelVersion]:
    found = [_version(stored) for stored in client.search_model_versions(f"name = '{name}'")]
    return {version.version: version for version in sorted(found, key=lambda version: version.version)}


def _version(stored: StoredVersion) -> ModelVersion:
    return ModelVersion(stored.name, int(stored.version), stored.run_id or None, dict(stored.tags))


def _upload(client: MlflowClient, uri: str, name: str, folder: Path, run_id: str | None) -> tuple[str, str]:
    """Id and place of the folder as a LoggedModel, in the experiment of its run where it has one."""
    where = client.get_run(run_id).info.experiment_id if run_id else experiment_id(client, uri, name)
    model = client.create_logged_model(where, name=re.sub("[^A-Za-z0-9_-]", "-", name), source_run_id=run_id)
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id, model.artifact_location


def _listed(found: Mapping[int, ModelVersion]) -> str:
    return ", ".join(map(str, found)) or "none"

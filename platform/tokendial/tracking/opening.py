"""Opening a run at the tracking server: one MLflow run per logical run, the same one when it is resumed.

What the server should know is first written to `<run>/tracking/opening.json`, then carried over by `ensure_open`; so a
server that is away at the start gets the run later, and a request whose answer was lost does not make a second run.
"""

import fcntl
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from tokendial.contracts import RunConfig
from tokendial.identity import Identity
from tokendial.runs import VOLATILE, write_atomically
from tokendial.tracking.journal import linked_id
from tokendial.tracking.server import AWAY, TrackingUnavailable, connect, logger, probe, reason
from tokendial.tracking.uri import artifact_root, fingerprint, redact
from tokendial.tracking.view import TAG, experiment_tags
from tokendial.versions import versions

FOLDER = "tracking"
MAX_VALUE_CHARS = 500
_BATCH = 100


def open_run(
    config: RunConfig[Any],
    identity: Identity,
    uri: str,
    run_dir: Path,
    *,
    digests: Mapping[str, str] | None = None,
    forked_from: str | None = None,
) -> str | None:
    """Create the run of `run_dir` at the server, or continue it, and return its MLflow id.

    `digests` are SHA-256 per split. Returns None where the server is away: records are then kept beside the run until
    it is back. Raises TrackingUnavailable instead where `config.tracking.strict`.
    """
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    before = read_document(folder / "opening.json")
    document = {
        "key": before.get("key") or uuid.uuid4().hex,
        "name": run_dir.name,
        "experiment": config.tracking.experiment or config.experiment,
        "counts": list(config.evaluation.counts),
        "params": params(config),
        "tags": tags(config, identity, forked_from),
        "datasets": _datasets(config, digests or {}),
        "config": public_config(config),
        "diff": identity.diff,
    }
    write_atomically(folder / "opening.json", json.dumps(document))
    (folder / "finish.json").unlink(missing_ok=True)
    try:
        probe(uri)
        return ensure_open(connect(uri), uri, folder)
    except AWAY as error:
        message = f"tracking server {redact(uri)} is not usable ({reason(error, uri)})"
        if config.tracking.strict:
            raise TrackingUnavailable(message) from None
        logger.warning("%s; records are kept in %s and sent when it is back", message, folder)
        return None


def ensure_open(client: MlflowClient, uri: str, folder: Path) -> str:
    """The MLflow id of the run described by `folder/opening.json`, created or brought up to date."""
    document = json.loads((folder / "opening.json").read_text())
    with _alone(folder):
        run = _linked(client, uri, folder) or _create(client, uri, document)
        run_id = run.info.run_id
        write_atomically(folder / "link.json", json.dumps({"server": fingerprint(uri), "run_id": run_id}))
        client.update_run(run_id, status="RUNNING")
        _log_params(client, run, document["params"])
        for batch in _batches([RunTag(key, value) for key, value in document["tags"].items()]):
            client.log_batch(run_id, tags=batch)
        client.log_inputs(run_id, [_dataset(entry) for entry in document["datasets"]])
        client.log_dict(run_id, document["config"], "config.json")
        if document["diff"]:
            client.log_text(run_id, document["diff"], "uncommitted.diff")
    return run_id


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time: a server that is back is found by the writers of every node at once."""
    with (folder / "opening.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_document(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file is not there."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def public_config(config: RunConfig[Any]) -> dict[str, Any]:
    """The resolved configuration with the tracking address free of secrets."""
    document = config.model_dump(mode="json")
    if config.tracking.uri is not None:
        document["tracking"]["uri"] = redact(config.tracking.uri)
    return document


def params(config: RunConfig[Any]) -> dict[str, str]:
    """What identifies the run, by dotted path: MLflow params can never change, so nothing here may on resume."""
    return {key: value for key, value in flatten(public_config(config)).items() if not _volatile(key)}


def tags(config: RunConfig[Any], identity: Identity, forked_from: str | None = None) -> dict[str, str]:
    """Who, what source, which packages, and the settings that a resumed run may change."""
    settings = {f"config.{key}": value for key, value in flatten(public_config(config)).items() if _volatile(key)}
    packages = {f"package.{name}": version for name, version in versions().items() if name != "python"}
    optional = {
        "mlflow.source.git.commit": identity.commit,
        "mlflow.note.content": config.description,
        "forked_from": forked_from,
    }
    return {
        "mlflow.user": identity.user,
        "mlflow.source.name": f"tokendial train {config.experiment}",
        "mlflow.source.type": "JOB",
        "workload": config.workload,
        "schedule": config.schedule.preset,
        "uncommitted_changes": str(identity.dirty).lower(),
        **settings,
        **packages,
        **{key: value for key, value in optional.items() if value},
    }


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted paths to short texts; a value past 500 characters ends in its length (the whole is in `config.json`)."""
    flat: dict[str, str] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return flat


def _short(text: str) -> str:
    if len(text) <= MAX_VALUE_CHARS:
        return text
    ending = f"… ({len(text)} characters)"
    return text[: MAX_VALUE_CHARS - len(ending)] + ending


def _volatile(key: str) -> bool:
    return key.split(".")[0] in VOLATILE or key in ("data.path", "data.num_workers")


def _linked(client: MlflowClient, uri: str, folder: Path) -> Run | None:
    """The run that this folder opened before at this server, unless it was deleted there."""
    run_id = linked_id(uri, folder)
    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _create(client: MlflowClient, uri: str, document: Mapping[str, Any]) -> Run:
    """Find the run by its key (an earlier answer may have been lost), or create it."""
    where = experiment_id(client, uri, document["experiment"])
    _show(client, where, document.get("counts", ()))
    found = client.search_runs([where], f"tags.`tokendial.key` = '{document['key']}'", max_results=1)
    if found:
        return found[0]
    first = {"tokendial.key": document["key"], "mlflow.user": document["tags"]["mlflow.user"]}
    return client.create_run(where, int(time.time() * 1000), first, document["name"])


def _show(client: MlflowClient, experiment: str, counts: Sequence[int]) -> None:
    """Give an experiment the view of its runs, once: what somebody changes there stays."""
    if counts and TAG not in client.get_experiment(experiment).tags:
        for key, value in experiment_tags(counts).items():
            client.set_experiment_tag(experiment, key, value)


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Id of the experiment of that name; it is created, or restored where it was deleted."""
    known = client.get_experiment_by_name(name)
    if known is None:
        root = artifact_root(uri)
        try:
            return client.create_experiment(name, f"{root}/{_slug(name)}" if root else None)
        except MlflowException as error:
            known = client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or known is None:
                raise
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    return known.experiment_id


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)[:80]


def _log_params(client: MlflowClient, run: Run, wanted: Mapping[str, str]) -> None:
    """Log what is missing; a param that is there with another value stays, and a tag tells the newer one."""
    known = run.data.params
    missing = [Param(key, value) for key, value in wanted.items() if key not in known]
    for batch in _batches(missing):
        client.log_batch(run.info.run_id, params=batch)
    changed = [RunTag(f"config.{key}", value) for key, value in wanted.items() if known.get(key, value) != value]
    for batch in _batches(changed):
        client.log_batch(run.info.run_id, tags=batch)


def _batches(entries: list[Any]) -> Iterable[list[Any]]:
    return (entries[start : start + _BATCH] for start in range(0, len(entries), _BATCH))


def _datasets(config: RunConfig[Any], digests: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"name": f"{config.workload}.{split}", "split": split, "digest": digest, "path": config.data.path or "embedded"}
        for split, digest in sorted(digests.items())
    ]


def _dataset(entry: Mapping[str, str]) -> DatasetInput:
    """MLflow keeps 36 characters of a digest; the whole one is in the profile."""
    dataset = Dataset(
        name=entry["name"],
        digest=entry["digest"][:36],
        source_type="tokendial",
        source=json.dumps({"path": entry["path"]}),
        profile=json.dumps({"sha256": entry["digest"]}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", entry["split"])])

"""The run store: one folder per run under `TOKENDIAL_HOME` (default `./runs`), found by id, name or `last`.

    runs/<name>/config.json      resolved configuration
    runs/<name>/run.json         who, when, status, MLflow run id; uncommitted.diff beside it where there was one
    runs/<name>/lease.json       the process that works on the run now
    runs/<name>/checkpoints/     checkpoints whose manifest is the commit; ray/ is Ray Train's own folder
    runs/<name>/model/           exported Hugging Face folder
    runs/<name>/scores.json      every answer behind the curve; ledger.json: what the run spent
    runs/<name>/result.json      what the run found; figures/ beside it
    runs/<name>/logs/            a log per rank; tracking/: records on their way to MLflow
"""

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tokendial.contracts import RunConfig, home
from tokendial.experiments import ConfigError
from tokendial.identity import Identity, user_name
from tokendial.results import RunResult, Status, read_result

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# What may change when a run is resumed, and so is no part of its name.
VOLATILE = {"workers", "device", "micro_batch", "zero", "tracking", "checkpoint", "max_failures", "description"}
LEASE_SECONDS = 30


class RunRecord(BaseModel):
    """`run.json`; `parent` is the run whose weights this one started from, `twin_of` the one it was trained for."""

    model_config = ConfigDict(frozen=True)

    name: str
    experiment: str
    user: str
    status: Status
    created: float
    commit: str = ""
    run_id: str | None = None
    tracking_uri: str | None = None
    error: str | None = None
    parent: str | None = None
    twin_of: str | None = None


class Run:
    """A run's folder and its record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def record(self) -> RunRecord:
        """Raises ConfigError where `run.json` is broken."""
        try:
            return RunRecord.model_validate_json((self.folder / "run.json").read_text("utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.folder / 'run.json'} is broken; repair it or move the folder away") from error

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    def config_document(self) -> dict[str, Any]:
        """Raises ConfigError where `config.json` is broken."""
        path = self.folder / "config.json"
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is broken; repair it or move the folder away") from error

    def read_result(self) -> RunResult:
        """What the run found; raises ConfigError where it has no result or a broken one."""
        if not self.result.exists():
            reason = f": {self.record.error}" if self.record.error else ""
            raise ConfigError(f"run {self.name!r} has no result; its status is {self.record.status}{reason}")
        try:
            return read_result(self.result)
        except (ValidationError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.result} is broken; delete it and train the run again to rewrite it") from error

    def configure(self, config: RunConfig[Any]) -> None:
        """Write down the configuration that the run goes on with; the caller holds its lease."""
        document = config.model_dump(mode="json")
        _refuse_other_config(self, document)
        write_atomically(self.folder / "config.json", json.dumps(document, indent=2))

    def update(self, **changes: Any) -> RunRecord:
        record = self.record.model_copy(update=changes)
        write_atomically(self.folder / "run.json", record.model_dump_json(indent=2))
        return record

    def holder(self) -> dict[str, Any] | None:
        """The living process that works on the run now: its `pid` and `host`."""
        path = self.folder / "lease.json"
        found = _holder(path)
        return found if found and _alive(found, path) else None

    def held(self) -> bool:
        """Whether a living process works on the run now."""
        path = self.folder / "lease.json"
        return path.exists() and _alive(_holder(path), path)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the run for this process; a second holder is refused while the first is alive."""
        path = self.folder / "lease.json"
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "born": _born(os.getpid())}
        while not _created(path, json.dumps(mine)):
            holder = _holder(path)
            if _alive(holder, path):
                who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
                raise ConfigError(
                    f"run {self.name!r} is already being worked on by {who}; "
                    "wait for it, stop it, or start another with --new"
                )
            _drop(path, holder)
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, stop), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()
            path.unlink(missing_ok=True)


def run_name(config: RunConfig[Any], user: str | None = None) -> str:
    """`user.experiment.hash`, the hash over everything that a resumed run must share."""
    return f"{user or user_name()}.{plain(config.experiment)}.{config_hash(config)}"


def plain(text: str) -> str:
    """Text as a part of a run's name."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", text)


def config_hash(config: RunConfig[Any], without: str | None = None) -> str:
    """8 hex digits over the configuration, what may change on resume and the field `without` left out."""
    document = config.model_dump(mode="json", exclude=VOLATILE | ({without} if without else set()))
    document["data"].pop("path", None)
    document["data"].pop("num_workers", None)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def lineage(parent: str | None) -> str:
    """What runs that differ only in seeds have in common of the runs their weights came from; empty: fresh weights."""
    if parent is None:
        return ""
    source = Run(home() / parent)
    if not source.result.exists():
        return parent
    known = source.read_result()
    return hashlib.blake2b(f"{known.variant} {known.data} {known.lineage}".encode(), digest_size=4).hexdigest()


def short_name(name: str) -> str:
    """The end of a run's name, which is its hash where the user gave none."""
    return name.rpartition(".")[2][-20:].strip("-_")


def parent_of(config_file: Path) -> str | None:
    """The run whose weights a run began with, of the folder that a configuration lies in; None for fresh ones."""
    run = Run(config_file.resolve().parent)
    return run.record.parent if (run.folder / "run.json").is_file() else None


def create(
    name: str,
    config: RunConfig[Any],
    identity: Identity,
    parent: str | None = None,
    twin_of: str | None = None,
) -> Run:
    """A new run's folder, or the existing one if it agrees in everything that may not change; see `check`."""
    run = check(name, config, parent)
    if not (run.folder / "run.json").exists():
        run.folder.mkdir(parents=True, exist_ok=True)
        document = config.model_dump(mode="json")
        record = RunRecord(
            name=name,
            experiment=config.experiment,
            user=identity.user,
            status="RUNNING",
            created=time.time(),
            commit=identity.commit,
            parent=parent,
            twin_of=twin_of,
        )
        write_atomically(run.folder / "config.json", json.dumps(document, indent=2))
        write_atomically(run.folder / "run.json", record.model_dump_json(indent=2))
        if identity.diff:
            (run.folder / "uncommitted.diff").write_text(identity.diff)
    return run


def checked_name(name: str) -> str:
    """A name that a run may have; raises ConfigError."""
    if name == "last" or not NAME.fullmatch(name):
        raise ConfigError(
            f"run name {name!r} is not admissible; use up to 100 letters, digits, `.`, `_` and `-`, and not `last`, "
            "which is the newest run"
        )
    return name


def check(name: str, config: RunConfig[Any], parent: str | None = None) -> Run:
    """The run that a name would be, written or not; raises ConfigError where it cannot be this one."""
    run = Run(home() / checked_name(name))
    if (run.folder / "plan.json").is_file():
        raise ConfigError(f"{name!r} is a search; give the run another --name")
    if (run.folder / "run.json").exists():
        _refuse_other_config(run, config.model_dump(mode="json"))
        before = run.record.parent
        if parent != before:
            began, asked = (f"from {source!r}" if source else "from fresh weights" for source in (before, parent))
            advice = "use --new, another --name, or its own --from"
            raise ConfigError(f"run {name!r} started {began}, not {asked}; {advice}")
    return run


def fresh_name(name: str) -> str:
    """`name`, or `name-2`, `name-3`, … whichever is free."""
    number, candidate = 1, name
    while (home() / candidate).exists():
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def find(reference: str) -> Run:
    """The run a user means by a name, an MLflow run id, its folder or `last`; raises ConfigError with the newest."""
    if (Path(reference) / "run.json").is_file():
        return Run(Path(reference).resolve())
    if reference == "last" and (mine := last()):
        return mine
    known = list_runs()
    for run in known:
        if reference in (run.name, run.record.run_id):
            return run
    if (home() / reference / "plan.json").is_file():
        raise ConfigError(f"{reference!r} is a search; `tokendial report {reference}` says which run of it is best")
    near = ", ".join(run.name for run in known[-5:]) or "none yet"
    raise ConfigError(f"run {reference!r} is not under {home()}; the newest there: {near}")


def last() -> Run | None:
    """The newest of the caller's own runs that was not trained as a twin, or for a search."""
    mine = [run for run in list_runs() if run.record.user == user_name() and run.record.twin_of is None]
    return mine[-1] if mine else None


def list_runs() -> list[Run]:
    """Every run under the home folder, oldest first."""
    folders = [path.parent for path in home().glob("*/run.json")]
    return sorted((run for run in map(Run, folders) if _readable(run)), key=lambda run: run.record.created)


def write_atomically(path: Path, text: str) -> None:
    """Write beside the target, then rename over it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def _readable(run: Run) -> bool:
    try:
        return bool(run.record)
    except (ConfigError, OSError):
        return False


def _beat(path: Path, stop: threading.Event) -> None:
    """Show other machines that the holder of a lease is alive, by the file's time."""
    while not stop.wait(LEASE_SECONDS / 3):
        with suppress(FileNotFoundError):
            os.utime(path)


def _created(path: Path, text: str) -> bool:
    """Write a file that was not there; False where it was."""
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _holder(path: Path) -> dict[str, Any]:
    """Who holds a lease; empty while it is being written or after it was given back."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _drop(path: Path, holder: dict[str, Any]) -> None:
    """Remove the lease of a dead holder, unless another process has replaced it meanwhile."""
    aside = path.with_name(f".lease.{os.getpid()}.{threading.get_ident()}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if _holder(aside) != holder:
            aside.rename(path)
        aside.unlink(missing_ok=True)


def _alive(holder: dict[str, Any], path: Path) -> bool:
    if holder.get("host") != socket.gethostname():
        with suppress(FileNotFoundError):
            return time.time() - path.stat().st_mtime < LEASE_SECONDS
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return holder["born"] == _born(holder["pid"])


def _born(pid: int) -> str | None:
    """When a process began, in clock ticks since boot: a number that was given again is another process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _refuse_other_config(run: Run, document: dict[str, Any]) -> None:
    recorded = run.config_document()
    fixed = [key for key in document if key not in VOLATILE]
    changed = sorted(key for key in fixed if _without_paths(document[key]) != _without_paths(recorded[key]))
    if changed:
        details = "; ".join(f"{key}: {_difference(recorded[key], document[key])}" for key in changed)
        raise ConfigError(
            f"run {run.name!r} has another configuration ({details}); use --new, another --name, or --from {run.name}"
        )


def _without_paths(value: Any) -> Any:
    return {k: v for k, v in value.items() if k not in ("path", "num_workers")} if isinstance(value, dict) else value


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return ", ".join(f"{name} {before.get(name)!r} → {after.get(name)!r}" for name in names)
    return f"{before!r} → {after!r}"

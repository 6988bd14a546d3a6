"""Checkpoints of a run: folders of files whose manifest, written last, is the commit.

A checkpoint is `exact` (everything a bit-equal resume needs, written by the engine) or `weights` (between stages and
at the end: the model's tensors as safetensors). A folder without a manifest, or unlike it, is passed over.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
log = logging.getLogger(__name__)


class Manifest(BaseModel):
    """`files` maps each path to (bytes, SHA-256); `step` is the optimizer steps done, `index` the next global batch."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["exact", "weights"]
    step: int
    index: int
    stage: int
    world: int
    zero: int
    schedule: str
    skipped: tuple[int, ...] = ()
    state: dict[str, Any] = {}
    versions: dict[str, str] = {}
    files: dict[str, tuple[int, str]] = {}


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    manifest: Manifest


def newest(root: Path) -> Checkpoint | None:
    """The newest checkpoint whose manifest verifies; broken newer ones are named in a warning."""
    for folder in sorted((path for path in root.glob("step-*") if path.is_dir()), reverse=True):
        found = verified(folder)
        if isinstance(found, Checkpoint):
            return found
        log.warning("checkpoint %s is passed over: %s", folder.name, found)
    return None


def verified(folder: Path) -> Checkpoint | str:
    """The checkpoint in a folder, or what is wrong with it."""
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_text("utf-8"))
    except FileNotFoundError:
        return "it has no manifest, so its writing was cut short"
    except (ValidationError, UnicodeDecodeError) as error:
        return f"its manifest is broken ({str(error).splitlines()[0]})"
    for name, (size, digest) in manifest.files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if sha256(file) != digest:
            return f"{name} does not match its SHA-256"
    return Checkpoint(folder, manifest)


class Writer:
    """Commits checkpoints off the training thread, in order: hash, manifest, a call of `committed`, retention."""

    def __init__(self, root: Path, keep: int, committed: Callable[[int], None] = lambda step: None) -> None:
        self._root = root
        self._committed = committed
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def commit(self, folder: Path, manifest: Manifest) -> None:
        """Queue the commit of a folder that every rank has finished writing."""
        self.wait()
        self._pending = self._pool.submit(self._commit, folder, manifest)

    def wait(self) -> None:
        """Return when the last commit is on disk; raise what it raised."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        self.wait()
        self._pool.shutdown()

    def _commit(self, folder: Path, manifest: Manifest) -> None:
        seal(folder, manifest)
        self._committed(manifest.step)
        self._retire(folder)

    def _retire(self, fresh: Path) -> None:
        """Keep the newest `keep` whole exact checkpoints and the last whole weights; drop all else, broken ones too.

        `fresh` was sealed just now. Nothing is being written meanwhile: whoever writes a folder waits for us first.
        """
        room = {"exact": self._keep, "weights": 1}
        for folder in sorted((path for path in self._root.glob("step-*") if path.is_dir()), reverse=True):
            kind = folder.name.rpartition("-")[2]
            whole = folder == fresh or (room.get(kind, 0) and isinstance(verified(folder), Checkpoint))
            if whole and room.get(kind, 0):
                room[kind] -= 1
            else:
                shutil.rmtree(folder)


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a finished folder: sizes and digests of every file in it."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    files = {name: ((folder / name).stat().st_size, sha256(folder / name)) for name in names if name != MANIFEST}
    text = manifest.model_copy(update={"files": files}).model_dump_json(indent=2)
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(text, "utf-8")
    temporary.replace(folder / MANIFEST)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_of(root: Path, step: int, kind: str) -> Path:
    """Where a checkpoint of `step` goes; weights sort after the exact one of the same step."""
    return root / f"step-{step:08d}-{'weights' if kind == 'weights' else 'exact'}"

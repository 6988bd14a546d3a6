"""The metric journal: an append-only file beside a run, and how much of it the tracking server has.

One line per logged step, `[milliseconds, step, {name: value}]`; `<name>.sent` holds `{"run_id", "offset"}`. Every
record goes through the journal, so a server that is away loses nothing, and a record that is sent twice is one row at
the server, because MLflow's key is (run, name, step, time, value).
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tokendial.tracking.uri import fingerprint

CAP_BYTES = 64 << 20


class Record(NamedTuple):
    time_ms: int
    step: int
    values: dict[str, float]


class Journal:
    """One journal file with one appending and one sending thread.

    `fresh` says that the file held nothing when it was opened. A name's steps only grow: a value at or below the last
    journalled step of its name is left out, so a run resumed from an earlier checkpoint writes each step once.
    """

    def __init__(self, path: Path, cap_bytes: int = CAP_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.cap_bytes = cap_bytes
        self.dropped = 0
        self.repeated = 0
        self._lock = threading.Lock()
        self._last_step: dict[str, int] = {}
        self._run_id = ""
        self._sent = 0
        self._size = self._recover()
        self.fresh = self._size == 0

    @property
    def pending_bytes(self) -> int:
        """Bytes journalled and not yet acknowledged."""
        with self._lock:
            return self._size - self._sent

    def append(self, records: Iterable[Record]) -> None:
        """Write records at the end; those past the cap, or that the disk refuses, are dropped and counted."""
        lines: list[bytes] = []
        size = self.pending_bytes
        for record in records:
            values = {name: value for name, value in record.values.items() if self._is_new(name, record.step)}
            self.repeated += len(record.values) - len(values)
            line = _encode(record._replace(values=values)) if values else b""
            if size + len(line) > self.cap_bytes:
                self.dropped += len(values)
                continue
            self._last_step.update(dict.fromkeys(values, record.step))
            size += len(line)
            lines.append(line)
        data = b"".join(lines)
        if data and not self._write(data):
            self.dropped += sum(len(json.loads(line)[2]) for line in lines if line)

    def bind(self, run_id: str) -> None:
        """Say which run the records go to; another run than before gets the journal from its beginning."""
        with self._lock:
            if self._run_id != run_id:
                self._run_id, self._sent = run_id, 0
                sent = _read_sent(self.path.with_suffix(".sent"))
                if sent.get("run_id") == run_id and sent.get("offset", 0) <= self._size:
                    self._sent = sent["offset"]

    def unsent(self, limit: int) -> tuple[list[Record], int]:
        """Oldest unsent records with about `limit` values in all (at least one record), and the offset behind them."""
        with self._lock:
            start, size = self._sent, self._size
        records, num = [], 0
        with open(self.path, "rb") as file:
            file.seek(start)
            while start < size and num < limit:
                line = file.readline()
                record = Record(*json.loads(line))
                if records and num + len(record.values) > limit:
                    break
                records.append(record)
                num += len(record.values)
                start += len(line)
        return records, start

    def acknowledge(self, offset: int) -> None:
        """Remember that the server has everything before `offset`."""
        with self._lock:
            self._sent = offset
        target = self.path.with_suffix(".sent")
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"run_id": self._run_id, "offset": offset}))
        temporary.replace(target)

    def _is_new(self, name: str, step: int) -> bool:
        return step > self._last_step.get(name, -1)

    def _write(self, data: bytes) -> bool:
        try:
            with open(self.path, "ab") as file:
                file.write(data)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._size)
            return False
        with self._lock:
            self._size += len(data)
        return True

    def _recover(self) -> int:
        """Size of the whole lines in the file; a line torn by a kill, and what follows it, is cut off."""
        if not self.path.exists():
            self.path.touch()
            return 0
        size = 0
        with open(self.path, "rb") as file:
            for line in file:
                record = _decode(line)
                if record is None:
                    break
                size += len(line)
                for name in record.values:
                    self._last_step[name] = max(record.step, self._last_step.get(name, -1))
        if size != self.path.stat().st_size:
            os.truncate(self.path, size)
        return size


def read_metrics(path: Path) -> Iterator[Record]:
    """Every whole record of a journal, oldest first, while another process may be writing it."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            record = _decode(line)
            if record is not None:
                yield record


def unsettled(folder: Path) -> bool:
    """Whether a finished run's tracking folder still holds something that its server was not told."""
    return (folder / "finish.json").exists()


def linked_id(uri: str, folder: Path) -> str | None:
    """The id that the server at `uri` gave the run of a tracking folder, as far as it is known here."""
    path = folder / "link.json"
    link = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return link["run_id"] if link.get("server") == fingerprint(uri) else None


def _decode(line: bytes) -> Record | None:
    """The record on a line; None where a kill or a full disk left half of one."""
    if not line.endswith(b"]\n"):
        return None
    try:
        return Record(*json.loads(line))
    except ValueError:
        return None


def _encode(record: Record) -> bytes:
    return json.dumps(list(record), separators=(",", ":")).encode() + b"\n"


def _read_sent(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}

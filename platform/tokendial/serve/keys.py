"""API keys: named, stored as a hash, with rate, floor, consent to bend, priority, and what each has used.

A key is 32 random bytes, so one SHA-256 is enough to store: there is nothing to guess that a slow hash would protect.
The store is one SQLite file beside the runs, changed by `tokendial keys` and followed by a running endpoint.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokendial import runs
from tokendial.experiments import ConfigError

PREFIX = "td-"
# The header's bytes 24 to 27 (sqlite.org/fileformat2.html): a clock may stand still between two changes, this does not.
CHANGES_END = 28
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Each step is worth one `patience_ms` of waiting.
MOST_PRIORITY = 1000
_TABLES = """
create table if not exists keys (
  name text primary key, digest text not null unique, rate_per_s real, min_quality real, may_bend integer not null,
  priority integer not null, created real not null, revoked real
);
create table if not exists usage (
  name text primary key, requests integer not null, images integer not null, visual_tokens integer not null,
  completion_tokens integer not null
);
"""


@dataclass(frozen=True)
class Usage:
    """What was answered under a key."""

    requests: int = 0
    images: int = 0
    visual_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.images + other.images,
            self.visual_tokens + other.visual_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True)
class Key:
    """What a key allows; `rate_per_s` None is unbounded, `min_quality` the least expected quality it is served at."""

    name: str
    rate_per_s: float | None = None
    min_quality: float | None = None
    may_bend: bool = False
    priority: int = 0
    created: float = 0.0
    revoked: float | None = None


def key_store() -> KeyStore:
    """The keys of endpoints that are started from this runs folder."""
    return KeyStore(runs.home() / "keys.db")


class KeyStore:
    """The keys of one file. Reading a key costs nothing while the file does not change."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seen: tuple[int, bytes] | None = None
        self._live: dict[str, Key] = {}

    def add(self, key: Key) -> str:
        """Store a new key and return its secret, which is not kept; raises ConfigError."""
        if not NAME.fullmatch(key.name):
            raise ConfigError(f"key name {key.name!r} is not admissible; use up to 64 letters, digits, `.`, `_`, `-`")
        if key.rate_per_s is not None and not 0 < key.rate_per_s <= 1e6:
            raise ConfigError(f"--rate {key.rate_per_s:g} must be above 0 and at most a million requests a second")
        if key.min_quality is not None and not 0 <= key.min_quality <= 1:
            raise ConfigError(f"--min-quality {key.min_quality:g} must be in [0, 1]")
        if abs(key.priority) > MOST_PRIORITY:
            raise ConfigError(f"--priority {key.priority} must be from -{MOST_PRIORITY} to {MOST_PRIORITY}")
        secret = PREFIX + secrets.token_urlsafe(32)
        row = (
            key.name, digest(secret), key.rate_per_s, key.min_quality, key.may_bend, key.priority, time.time(), None,
        )  # fmt: skip
        with self._open() as database:
            try:
                database.execute("insert into keys values (?, ?, ?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:
                told = f"key {key.name!r} exists, in force or revoked: its usage is kept under the name; choose another"
                raise ConfigError(told) from None
        return secret

    def revoke(self, name: str) -> None:
        """Refuse a key from now on; its name and usage stay. Raises ConfigError where there is none in force."""
        with self._open() as database:
            done = database.execute(
                "update keys set revoked = ? where name = ? and revoked is null", (time.time(), name)
            )
        if not done.rowcount:
            raise ConfigError(f"there is no key {name!r} in force; `tokendial keys list` shows them")

    def list(self) -> list[tuple[Key, Usage]]:
        """Every key, revoked ones too, with what it used."""
        query = """select k.name, rate_per_s, min_quality, may_bend, priority, created, revoked,
          coalesce(requests, 0), coalesce(images, 0), coalesce(visual_tokens, 0), coalesce(completion_tokens, 0)
          from keys k left join usage u on u.name = k.name order by created"""
        if not self.file.exists():
            return []
        with self._open() as database:
            rows = database.execute(query).fetchall()
        return [(_key(row[:7]), Usage(*row[7:])) for row in rows]

    def find(self, secret: str) -> Key | None:
        """The key of a secret, or None; compared by digest, so the time taken tells nothing about the secret."""
        self._follow()
        return self._live.get(digest(secret))

    def any(self) -> bool:
        """Whether a key is in force."""
        self._follow()
        return bool(self._live)

    def record(self, used: Mapping[str, Usage]) -> None:
        """Add what was answered, by key name."""
        statement = """insert into usage values (?, ?, ?, ?, ?) on conflict (name) do update set
          requests = requests + excluded.requests, images = images + excluded.images,
          visual_tokens = visual_tokens + excluded.visual_tokens,
          completion_tokens = completion_tokens + excluded.completion_tokens"""
        rows = [(name, u.requests, u.images, u.visual_tokens, u.completion_tokens) for name, u in used.items()]
        with self._open() as database:
            database.executemany(statement, rows)

    def _follow(self) -> None:
        """Read the keys again where the file has changed; SQLite counts changes in the file's header."""
        try:
            with self.file.open("rb") as file:
                changed = (os.fstat(file.fileno()).st_mtime_ns, file.read(CHANGES_END)[-4:])
        except FileNotFoundError:
            self._live, self._seen = {}, None
            return
        if changed == self._seen:
            return
        with self._open() as database:
            query = """select digest, name, rate_per_s, min_quality, may_bend, priority, created, revoked
              from keys where revoked is null"""
            rows = database.execute(query).fetchall()
        self._live = {row[0]: _key(row[1:]) for row in rows}
        self._seen = changed

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if not self.file.exists():
            os.close(os.open(self.file, os.O_CREAT | os.O_WRONLY, 0o600))
        database = sqlite3.connect(self.file, timeout=10)
        try:
            with database:
                database.executescript(_TABLES)
                yield database
        finally:
            database.close()


def _key(row: Sequence[Any]) -> Key:
    name, rate_per_s, min_quality, may_bend, priority, created, revoked = row
    return Key(name, rate_per_s, min_quality, bool(may_bend), priority, created, revoked)


def digest(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()

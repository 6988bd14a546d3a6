"""Keys: shown once, stored as a digest, followed by a running endpoint, and a rate that holds."""

import os
import sqlite3
import stat
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from endpoint_lab import ScriptedBackend, chat, post, running
from tokendial.experiments import ConfigError
from tokendial.serve import ingress
from tokendial.serve.ingress import Options, create_app
from tokendial.serve.keys import Key, KeyStore, Usage, digest
from tokendial.serve.rate import Bucket, take


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


def test_the_secret_is_nowhere_in_the_file_and_only_the_owner_may_read_it(file: Path) -> None:
    secret = KeyStore(file).add(Key("alice"))
    assert len(secret) > 40
    content = file.read_bytes()
    assert secret.encode() not in content
    assert digest(secret).encode() in content
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_is_found_by_its_secret_with_all_it_allows(file: Path) -> None:
    store = KeyStore(file)
    secret = store.add(Key("alice", rate_per_s=5, min_quality=0.9, may_bend=True, priority=2))
    found = store.find(secret)
    assert found is not None
    assert (found.name, found.rate_per_s, found.min_quality, found.may_bend, found.priority) == (
        "alice",
        5,
        0.9,
        True,
        2,
    )
    assert store.find(secret[:-1]) is None
    assert store.find("") is None
    assert store.find("td-\ud800") is None


def test_a_running_store_follows_keys_that_are_added_and_revoked_elsewhere(file: Path) -> None:
    running, command = KeyStore(file), KeyStore(file)
    assert not running.any()
    secret = command.add(Key("alice"))
    assert running.any()
    assert running.find(secret) is not None
    command.revoke("alice")
    assert running.find(secret) is None
    assert not running.any()


def test_a_key_that_is_revoked_within_one_tick_of_the_files_clock_is_refused(file: Path) -> None:
    running, command = KeyStore(file), KeyStore(file)
    secret = command.add(Key("alice"))
    assert running.find(secret) is not None
    tick = file.stat()
    command.revoke("alice")
    os.utime(file, ns=(tick.st_atime_ns, tick.st_mtime_ns))
    assert running.find(secret) is None


def test_usage_adds_up_and_outlives_a_key(file: Path) -> None:
    store = KeyStore(file)
    store.add(Key("alice"))
    store.record({"alice": Usage(1, 2, 32, 5)})
    store.record({"alice": Usage(2, 0, 0, 5), "gone": Usage(1, 1, 1, 1)})
    store.revoke("alice")
    [(key, usage)] = store.list()
    assert usage == Usage(3, 2, 32, 10)
    assert key.revoked is not None


@pytest.mark.parametrize(
    "key",
    [
        Key(""), Key("a b"), Key("x" * 65), Key("../a"), Key("a", rate_per_s=0), Key("a", min_quality=1.1),
        Key("a", priority=2**63), Key("a", priority=-(2**63)),
    ],
)  # fmt: skip
def test_a_bad_key_is_refused(file: Path, key: Key) -> None:
    with pytest.raises(ConfigError):
        KeyStore(file).add(key)


def test_a_name_is_given_once_and_only_a_key_in_force_is_revoked(file: Path) -> None:
    store = KeyStore(file)
    store.add(Key("alice"))
    with pytest.raises(ConfigError, match="exists"):
        store.add(Key("alice"))
    store.revoke("alice")
    with pytest.raises(ConfigError, match=r"revoked: .* choose another$"):
        store.add(Key("alice"))
    with pytest.raises(ConfigError, match="no key"):
        store.revoke("bob")


def test_a_bucket_lets_a_second_of_requests_through_at_once_and_then_the_rate() -> None:
    bucket: Bucket | None = None
    allowed = 0
    for step in range(1000):
        bucket, wait_s = take(bucket, 10.0, step / 100)
        allowed += wait_s == 0
    assert allowed == 10 + 99


def test_a_bucket_below_one_a_second_still_lets_one_through() -> None:
    bucket, wait_s = take(None, 0.1, 0.0)
    assert wait_s == 0
    bucket, wait_s = take(bucket, 0.1, 0.0)
    assert wait_s == pytest.approx(10)
    assert take(bucket, 0.1, 10.1)[1] == 0


def test_usage_that_could_not_be_written_down_is_written_later(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "USAGE_PERIOD_S", 0.05)
    store = KeyStore(file)
    secret = store.add(Key("alice"))
    written, failures = store.record, [sqlite3.OperationalError("database is locked"), OSError("no space left")]

    def record(used: Mapping[str, Usage]) -> None:
        if failures:
            raise failures.pop()
        written(used)

    monkeypatch.setattr(store, "record", record)
    with running(create_app(ScriptedBackend(), Options(), store)) as url:
        for asked in (1, 2):
            assert post(url, chat(text="a b"), authorization=f"Bearer {secret}")[0] == 200
            deadline = time.monotonic() + 10
            while failures or store.list()[0][1].requests < asked:
                assert time.monotonic() < deadline
                time.sleep(0.02)
    assert store.list()[0][1] == Usage(2, 0, 0, 4)

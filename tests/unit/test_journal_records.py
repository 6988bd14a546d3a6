"""The journal keeps every whole record, forgets torn ones, and knows how far the server got."""

import json
from pathlib import Path

import pytest
from tokendial.experiments import ConfigError
from tokendial.tracking.journal import Journal, Record, read_metrics
from tokendial.tracking.uri import artifact_root, default_uri, redact, resolve_uri, scrub


def records(steps: range) -> list[Record]:
    return [Record(1000 + step, step, {"train/loss": float(step)}) for step in steps]


def drain(journal: Journal, run_id: str = "r", limit: int = 3) -> list[int]:
    journal.bind(run_id)
    steps = []
    while journal.pending_bytes:
        batch, offset = journal.unsent(limit)
        steps += [record.step for record in batch]
        journal.acknowledge(offset)
    return steps


def test_records_are_sent_in_order_and_once(tmp_path: Path):
    journal = Journal(tmp_path / "m.jsonl")
    journal.append(records(range(7)))
    assert drain(journal) == list(range(7))
    journal.append(records(range(7, 9)))
    assert drain(Journal(tmp_path / "m.jsonl")) == [7, 8]


def test_another_run_gets_the_journal_from_its_beginning(tmp_path: Path):
    journal = Journal(tmp_path / "m.jsonl")
    journal.append(records(range(4)))
    assert drain(journal, "first") == drain(Journal(tmp_path / "m.jsonl"), "second") == [0, 1, 2, 3]


@pytest.mark.parametrize("tail", [b'[5,5,{"train/lo', b'[5,5,{"train/loss":1}', b"\0\0\0\n", b"]\n"], ids=repr)
def test_a_torn_tail_is_cut_off(tail: bytes, tmp_path: Path):
    path = tmp_path / "m.jsonl"
    Journal(path).append(records(range(3)))
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert [record.step for record in read_metrics(path)] == [0, 1, 2]
    journal = Journal(path)
    assert path.read_bytes() == whole
    journal.append(records(range(3, 5)))
    assert drain(journal) == [0, 1, 2, 3, 4]


def test_a_step_that_was_journalled_is_left_out_per_name(tmp_path: Path):
    journal = Journal(tmp_path / "m.jsonl")
    journal.append(records(range(5)))
    journal.append([Record(1, 4, {"train/loss": 9.0, "validation/autc": 0.5})])
    assert journal.repeated == 1
    assert [record.values for record in read_metrics(tmp_path / "m.jsonl")][-1] == {"validation/autc": 0.5}


def test_the_cap_holds_for_what_is_unsent_only(tmp_path: Path):
    journal = Journal(tmp_path / "m.jsonl", cap_bytes=100)
    journal.append(records(range(10)))
    kept = drain(journal)
    assert journal.dropped == 10 - len(kept) > 0
    journal.append(records(range(10, 12)))
    assert drain(journal) == [10, 11]


def test_a_disk_that_refuses_counts_as_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    journal = Journal(tmp_path / "m.jsonl")
    journal.path = tmp_path
    journal.append(records(range(3)))
    assert journal.dropped == 3


def test_a_batch_is_bounded_but_never_empty(tmp_path: Path):
    journal = Journal(tmp_path / "m.jsonl")
    journal.append([Record(1, step, {f"a/b{i}": 1.0 for i in range(5)}) for step in range(3)])
    journal.bind("r")
    assert len(journal.unsent(2)[0]) == 1
    assert len(journal.unsent(10)[0]) == 2


def test_the_journal_is_plain_lines(tmp_path: Path):
    Journal(tmp_path / "m.jsonl").append(records(range(1)))
    assert json.loads((tmp_path / "m.jsonl").read_text()) == [1000, 0, {"train/loss": 0.0}]


def test_addresses_are_shown_without_secrets():
    assert redact("postgresql://ada:pw@db:5432/mlflow?password=pw") == "postgresql://db:5432/mlflow"
    assert redact("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert redact("sqlite:////srv/mlflow.db") == "sqlite:////srv/mlflow.db"
    assert scrub("no answer from http://ada:pw@h/ (pw)", "http://ada:pw@h/") == "no answer from http://h/ (***)"


def test_the_default_store_and_its_artifacts_lie_together(tmp_path: Path):
    uri = default_uri(tmp_path)
    assert uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifact_root(uri) == f"file://{tmp_path}/mlartifacts"
    assert artifact_root("http://127.0.0.1:5000") is None


def test_an_address_is_the_configured_one_then_the_environments_then_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None, tmp_path) == default_uri(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert resolve_uri(None, tmp_path) == "http://tracker:5000"
    assert resolve_uri("https://other", tmp_path) == "https://other"


def test_a_relative_database_is_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///runs/mlflow.db", tmp_path) == f"sqlite:///{tmp_path}/runs/mlflow.db"


@pytest.mark.parametrize(
    "uri",
    ["mlruns", "sqlite:///:memory:", "sqlite:///", "file:///runs", "http://", "ftp://ada:pw@h", "http://ada:pw@[h"],
)
def test_an_address_that_cannot_hold_runs_is_refused_by_where_it_was_given(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for configured, name in ((uri, r"tracking\.uri"), (None, "MLFLOW_TRACKING_URI")):
        with pytest.raises(ConfigError, match=f"^{name} '") as refused:
            resolve_uri(configured, tmp_path)
        assert "pw" not in str(refused.value)


def test_an_address_with_a_nul_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^tracking\.uri 'sqlite:///a\\x00b' holds a NUL"):
        resolve_uri("sqlite:///a\0b", tmp_path)

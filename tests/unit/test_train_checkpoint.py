"""Checkpoint folders: the manifest is the commit, and nothing broken is ever taken for whole."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tokendial.train.checkpoint import MANIFEST, Checkpoint, Manifest, Writer, folder_of, newest, seal, verified
from tokendial.train.worker import patient


def manifest(step: int, kind: str = "exact") -> Manifest:
    document = {"kind": kind, "step": step, "index": step, "stage": 0, "world": 1, "zero": 1, "schedule": "00"}
    return Manifest.model_validate(document)


def checkpoint(root: Path, step: int, kind: str = "exact") -> Path:
    folder = folder_of(root, step, kind)
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "shard.pt").write_bytes(bytes(range(256)) * 4)
    (folder / "other.bin").write_bytes(b"x")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for step in (10, 20):
        seal(checkpoint(tmp_path, step), manifest(step))
    return tmp_path


def damage(folder: Path, how: str) -> None:
    shard = folder / "engine" / "shard.pt"
    content = bytearray(shard.read_bytes())
    match how:
        case "flip":
            content[100] ^= 1
            shard.write_bytes(content)
        case "truncate":
            shard.write_bytes(content[:-1])
        case "delete":
            shard.unlink()
        case "swap":
            other = folder / "other.bin"
            shard.write_bytes(other.read_bytes())
            other.write_bytes(content)
        case "no manifest":
            (folder / MANIFEST).unlink()
        case "cut manifest":
            path = folder / MANIFEST
            path.write_text(path.read_text()[:-20])


@pytest.mark.parametrize("how", ["flip", "truncate", "delete", "swap", "no manifest", "cut manifest"])
def test_a_damaged_newest_checkpoint_is_passed_over_by_name(
    root: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder_of(root, 20, "exact"), how)
    with caplog.at_level(logging.WARNING):
        found = newest(root)
    assert found is not None
    assert found.manifest.step == 10
    assert "step-00000020-exact is passed over" in caplog.text


def test_weights_of_a_step_are_newer_than_its_exact_checkpoint(root: Path) -> None:
    seal(checkpoint(root, 20, "weights"), manifest(20, "weights"))
    found = newest(root)
    assert found is not None
    assert found.manifest.kind == "weights"


def test_the_writer_keeps_the_newest_and_the_last_weights(tmp_path: Path) -> None:
    writer = Writer(tmp_path, keep=2)
    for step, kind in [(5, "weights"), (10, "exact"), (20, "exact"), (30, "exact"), (30, "weights")]:
        writer.wait()
        writer.commit(checkpoint(tmp_path, step, kind), manifest(step, kind))
    writer.close()
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000020-exact", "step-00000030-exact", "step-00000030-weights"]
    assert all(isinstance(verified(path), Checkpoint) for path in tmp_path.iterdir())


def test_broken_and_half_written_folders_do_not_count_among_those_kept(root: Path) -> None:
    damage(folder_of(root, 20, "exact"), "flip")
    checkpoint(root, 25)
    writer = Writer(root, keep=2)
    writer.commit(checkpoint(root, 30), manifest(30))
    writer.close()
    assert sorted(path.name for path in root.iterdir()) == ["step-00000010-exact", "step-00000030-exact"]


def test_what_a_commit_raises_reaches_the_trainer(tmp_path: Path) -> None:
    writer = Writer(tmp_path, keep=1)
    writer.commit(tmp_path / "absent", manifest(1))
    with pytest.raises(OSError, match="absent"):
        writer.wait()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path) is None


@pytest.mark.parametrize("patiently", [True, False])
def test_workers_wait_for_what_one_writes_alone_and_for_nothing_else(patiently: bool) -> None:
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]

    def wait(rank: int) -> None:
        group: Any = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=0.3))
        with patient(group):
            group.barrier().wait()
            if patiently:
                time.sleep(0.9 * (rank == 0))
                group.barrier().wait()
        if not patiently:
            time.sleep(0.9 * (rank == 0))
            group.barrier().wait()

    with ThreadPoolExecutor(2) as both:
        waits = [both.submit(wait, rank) for rank in range(2)]
    assert [isinstance(each.exception(), RuntimeError) for each in waits] == [not patiently] * 2

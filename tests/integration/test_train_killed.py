"""Workers and drivers that are killed: the run goes on from its last checkpoint, under the same name and MLflow run."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_lab import (
    cluster_is_free,
    command,
    folder_of,
    here,
    history,
    kill,
    say,
    step_reached,
    tracked,
    train,
    training_processes,
    until,
)
from tokendial import runs
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from train_faults import fault
from train_lab import SHORT, Control, assert_bit_equal, final_weights

EVERY = "checkpoint.every=3"
LINE = ("train", "digits.tiny", *SHORT, EVERY, "--name", "it")


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(ray_cluster: str) -> Iterator[None]:
    yield
    until("free CPUs", cluster_is_free)
    until("end of the training processes", lambda: not training_processes())


def test_training_that_is_not_of_this_cluster_is_not_waited_for() -> None:
    stranger = ["ray::RayTrainWorker", "-c", "read until_it_is_closed"]
    with subprocess.Popen(stranger, executable="/bin/sh", stdin=subprocess.PIPE):
        assert training_processes() == []


@pytest.mark.parametrize(
    ("workers", "rank"),
    [pytest.param(1, 0, marks=pytest.mark.slow), pytest.param(2, 0, marks=pytest.mark.slow), (2, 1)],
)
def test_a_killed_worker_is_replaced_and_the_run_ends_as_if_it_had_not_been(
    workers: int, rank: int, home: Path, tmp_path: Path, control: Control, worker_process: None
) -> None:
    marker, whole = tmp_path / "marker", control(EVERY)
    result = train(EVERY, f"workers={workers}", *fault(marker, kill=[8], rank=rank))
    assert marker.read_text().splitlines() == ["kill 8"]
    assert (result.status, result.steps) == ("FINISHED", 12)
    # Batches 6, 7 (and 8, which was cut) are run again from the checkpoint at step 6; nothing counts them twice.
    log = (folder_of(result) / "logs" / "rank-0.log").read_text()
    assert log.count("continuing from step-00000006-exact") == 1
    losses = history(home, result.name, "train/loss")
    assert list(losses) == list(range(1, 13))
    assert list(losses.values()) == pytest.approx(whole.losses, rel=1e-4)
    if workers == 1:
        assert_bit_equal(final_weights(folder_of(result)), whole.weights)


def test_a_failed_run_names_its_cause_and_is_continued_on_fewer_workers_at_another_zero_stage(
    home: Path, tmp_path: Path, control: Control, worker_process: None
) -> None:
    marker, settings = tmp_path / "marker", (EVERY, "max_failures=0")
    with pytest.raises(WorkFailed, match="after 0 restarts: RuntimeError: the sensor of batch 8 is on fire; logs are"):
        train(*settings, "workers=2", *fault(marker, fail=[8]), name="it")
    assert "fail 8" in marker.read_text().splitlines()
    record = runs.find("it").record
    assert record.status == "FAILED"
    assert "on fire" in (record.error or "")
    _, run = tracked(home, "it")
    assert run.info.status == "FAILED"
    with pytest.raises(ConfigError, match=r"run 'it' has another configuration \(seed: 0 → 3\); use --new, another"):
        train(*settings, "seed=3", *fault(marker), name="it")
    with pytest.raises(ConfigError, match=r"run 'it' stopped under zero\.stage 1 and cannot go on under 0"):
        train(*settings, "zero.stage=0", *fault(marker), name="it")
    result = train(*settings, "workers=1", "zero.stage=3", *fault(marker), name="it")
    assert (result.status, result.error, result.run_id) == ("FINISHED", None, record.run_id)
    _, run = tracked(home, "it")
    assert run.info.status == "FINISHED"
    assert (run.data.tags["config.zero.stage"], run.data.tags["config.workers"]) == ("3", "1")
    losses = history(home, "it", "train/loss")
    assert list(losses) == list(range(1, 13))
    assert list(losses.values()) == pytest.approx(control(EVERY).losses, rel=1e-4)
    assert list((runs.find("it").checkpoints).glob("*-exact/universal")), "the checkpoint was not converted"


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_at_another_world_size(
    zero: int, before: int, after: int, home: Path, tmp_path: Path, control: Control, worker_process: None
) -> None:
    settings = (EVERY, "max_failures=0", f"zero.stage={zero}")
    with pytest.raises(WorkFailed, match="on fire"):
        train(*settings, f"workers={before}", *fault(tmp_path / "marker", fail=[8]))
    result = train(*settings, f"workers={after}", *fault(tmp_path / "marker"))
    losses = history(home, result.name, "train/loss")
    assert list(losses) == list(range(1, 13))
    assert list(losses.values()) == pytest.approx(control(*settings).losses, rel=1e-4)
    assert list((folder_of(result) / "checkpoints").glob("*-exact/universal"))


def test_a_killed_driver_is_continued_by_the_same_command(
    home: Path, tmp_path: Path, ray_cluster: str, control: Control, worker_process: None
) -> None:
    folder, slow = home / "it", fault(tmp_path / "marker", slow=[0.4])
    first = command(*LINE, *slow, home=home, address=ray_cluster)
    until("step 7", lambda: step_reached(folder) >= 7, first)
    with pytest.raises(ConfigError, match=f"run 'it' is already being worked on by process {first.pid} on "):
        train(EVERY, *slow, name="it")
    kill(first, signal.SIGKILL)
    before = json.loads((folder / "run.json").read_text())
    assert before["status"] == "RUNNING"
    until("end of the training processes", lambda: not training_processes())
    third = here(*LINE, *fault(tmp_path / "marker"), "--json", home=home)
    assert third.code == 0, third.err
    assert third.document["status"] == "FINISHED"
    assert third.document["run_id"] == before["run_id"]
    assert list(history(home, "it", "train/loss")) == list(range(1, 13))
    assert list(history(home, "it", "train/loss").values()) == control(EVERY).losses
    assert_bit_equal(final_weights(folder), control(EVERY).weights)
    fourth = say(*LINE, *slow, "--json", home=home)
    assert fourth.document == third.document


STOPS = {
    signal.SIGTERM: (143, "tokendial: stopped; the same command continues the run"),
    signal.SIGINT: (130, "tokendial: interrupted; the same command continues the run"),
}


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_a_run_told_to_stop_ends_killed_in_one_sentence(
    number: signal.Signals, home: Path, tmp_path: Path, ray_cluster: str
) -> None:
    slow = fault(tmp_path / "marker", slow=[0.4])
    process = command(*LINE, *slow, home=home, address=ray_cluster)
    until("step 5", lambda: step_reached(home / "it") >= 5, process)
    stopped = kill(process, number)
    code, sentence = STOPS[number]
    assert stopped.code == code, stopped
    assert stopped.err.splitlines() == [sentence]
    record = json.loads((home / "it" / "run.json").read_text())
    assert record["status"] == "KILLED"
    _, run = tracked(home, "it")
    assert run.info.status == "KILLED"
    assert not (home / "it" / "lease.json").exists()

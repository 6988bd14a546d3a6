"""What a run and its tracking server know of each other where one of them was away; one worker, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_lab import folder_of, history, tracked, train
from tokendial import runs
from tokendial.failures import Terminated, WorkFailed
from tokendial.results import read_result
from tokendial.runs import Run, RunRecord
from tokendial.tracking import finish, opening
from tokendial.train import ray_trainer
from tokendial.train.room import Room
from tokendial.train.worker import Order, Seat, work
from tracking_samples import fresh_store


@pytest.fixture(autouse=True)
def here(worker_process: None, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work_here(order: Order, *rest: Any) -> None:
        work(order, Seat(0, 1, torch.device("cpu"), lambda step, values: None, lambda latest: None))

    fresh_store(home)
    monkeypatch.setattr(ray_trainer, "connect", lambda: None)
    monkeypatch.setattr(ray_trainer, "cluster_room", lambda: Room(2, 0))
    monkeypatch.setattr(ray_trainer, "train", work_here)


def away(uri: str) -> None:
    raise ConnectionError("no answer")


@pytest.mark.parametrize("places", [[opening], [opening, finish]], ids=["at the start", "all the time"])
def test_a_run_learns_its_id_from_a_server_that_was_away(
    places: list[Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        for place in places:
            patched.setattr(place, "probe", away)
        result = train()
        assert (result.run_id is None) is (finish in places)
    result = train()
    _, run = tracked(home, result.name)
    assert result.run_id == run.info.run_id
    assert read_result(folder_of(result) / "result.json") == result
    assert runs.find(run.info.run_id).name == result.name


def test_a_run_that_goes_on_while_the_server_is_away_keeps_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(ray_trainer, "train", failing)
        with pytest.raises(WorkFailed):
            train()
    known = runs.list_runs()[0].record.run_id
    assert known is not None
    monkeypatch.setattr(opening, "probe", away)
    monkeypatch.setattr(finish, "probe", away)
    assert train().run_id == known == runs.list_runs()[0].record.run_id


def failing(*order: object) -> None:
    raise WorkFailed("no worker")


def test_a_run_ended_as_it_became_finished_tells_its_server_later(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Run, "update", ending_at("FINISHED", Run.update))
        with pytest.raises(Terminated):
            train()
    result = train()
    assert list(history(home, result.name, "curve/quality")) == [4]
    assert tracked(home, result.name)[1].info.status == "FINISHED"


def ending_at(status: str, update: Callable[..., RunRecord]) -> Callable[..., RunRecord]:
    """Updates of a record, the process being told to end once the status is written."""

    def updated(run: Run, **changes: Any) -> RunRecord:
        record = update(run, **changes)
        if changes.get("status") == status:
            raise Terminated
        return record

    return updated

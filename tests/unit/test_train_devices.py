"""What training does about the device it is on, and on a GPU a whole small run."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tokendial import metrics
from tokendial.ledger import Ledger
from tokendial.promote import latency
from tokendial.resolve import resolve
from tokendial.results import read_examples
from tokendial.scores import Scores
from tokendial.train import loop, memory, worker
from tokendial.train.driver import with_horizon
from tokendial.train.horizon import stage_plans
from tokendial.train.loop import State, make_job
from tokendial.train.worker import Order, Seat, work

CONFIG = with_horizon(resolve("digits.tiny"))
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_the_model_is_left_to_deepspeed_to_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves it in the precision it trains in; in fp32 each GPU would need room for all of it."""
    monkeypatch.setattr(worker.ds, "start", lambda module, *_: module)
    job = replace(make_job(CONFIG, 12, 0, 1, torch.device("cpu")), device=torch.device("meta"))
    module: Any = worker._engine(job, stage_plans(CONFIG, 12)[0], None)
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}


def test_every_step_has_a_peak_of_its_own_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(loop, "_batches", lambda *_: iter(()))
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    engine: Any = None
    for device in (cpu, gpu):
        job = replace(make_job(CONFIG, 12, 0, 1, cpu), device=device)
        with pytest.raises(StopIteration):
            loop.run_stage(job, engine, stage_plans(CONFIG, 12)[0], State(), lambda *_: None)
    assert reset == [gpu]


@pytest.fixture(scope="module")
def _nccl_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if dist.is_initialized():
        pytest.skip("this process has a group already; with -m gpu it has none")
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def gpu_worker(_nccl_group: None, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """This process as the only training worker, on a GPU."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    return torch.device("cuda", 0)


class Cut(Exception):
    """The run ends here, as if it was killed."""


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("zero", [0, 1, 3])
def test_a_run_on_a_gpu_goes_on_from_its_checkpoint_and_is_exported_and_scored(
    zero: int, gpu_worker: torch.device, tmp_path: Path
) -> None:
    config = with_horizon(
        resolve(
            "digits.tiny", (f"zero.stage={zero}", "micro_batch=4", "checkpoint.every=3", "evaluation.counts=[4,16]")
        )
    )
    assert config.accumulation == 2
    losses: dict[int, float] = {}
    cut: list[int] = [7]

    def log(step: int, values: Mapping[str, float]) -> None:
        losses.setdefault(step, values[metrics.LOSS])
        if step in cut:
            raise Cut

    order = Order(config.model_dump(mode="json"), str(tmp_path), config.budget.horizon or 0)
    seat = Seat(0, 1, gpu_worker, log, lambda latest: None)
    with pytest.raises(Cut):
        work(order, seat)
    cut.clear()
    work(order, seat)
    assert sorted(losses) == list(range(1, 13))
    assert all(map(isfinite, losses.values()))
    scores = Scores.read(tmp_path / "scores.json")
    assert scores.items.counts == (4, 16)
    assert all(0 <= quality <= 1 for line in scores.items.quality.values() for quality in line)
    assert len(read_examples(tmp_path / "tracking" / "examples.json")) == config.evaluation.table_examples
    ledger = Ledger.from_json(json.loads((tmp_path / "ledger.json").read_text()))
    assert ledger.gpu_seconds > 0
    assert all(tally.peak_bytes for tally in ledger.counts.values())
    measured = latency(tmp_path / "model", config, [4, 16])
    assert measured.device == torch.cuda.get_device_name()
    assert all(ms > 0 for ms in measured.ms.values())


@pytest.mark.gpu
@on_gpu
def test_a_gpus_peak_is_counted_from_the_reset() -> None:
    device = torch.device("cuda", 0)
    torch.empty(64 << 20, dtype=torch.uint8, device=device)
    before = memory.peak_bytes(device)
    memory.reset_peak(device)
    assert memory.peak_bytes(device) + (64 << 20) <= before

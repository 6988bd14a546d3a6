"""What serving does about the device: which one a replica takes, what is built before traffic, and how exactly."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from served_model import COUNTS, all_answers, export_model, question, run
from tokendial import environment
from tokendial.contracts.precision import on_device
from tokendial.contracts.serving import Row
from tokendial.serve import vision
from tokendial.serve.engine import Engine
from tokendial.serve.replica import EngineReplica
from tokendial_workloads.vlm.export import load
from tokendial_workloads.vlm.serving import VlmServing

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(tmp_path_factory.mktemp("served") / "model")


@pytest.mark.parametrize("given", [[], [1]], ids=["none", "one"])
def test_a_replica_sees_a_gpu_only_where_it_was_given_one(given: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(use_gpu: bool) -> None:
        raise InterruptedError(use_gpu)

    monkeypatch.setattr(ray, "get_gpu_ids", lambda: given)
    monkeypatch.setattr(environment, "apply", apply)
    arguments: Any = (None, None)
    with pytest.raises(InterruptedError) as told:
        asyncio.run(EngineReplica.__init__(EngineReplica.__new__(EngineReplica), *arguments))
    assert told.value.args == (bool(given),)


def test_groups_of_every_size_class_are_projected_before_traffic(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[int, set[int]] = {count: set() for count in COUNTS}
    project = VlmServing.project

    def recorded(self: VlmServing, features_INC: torch.Tensor, k: int) -> torch.Tensor:
        sizes[k].add(features_INC.shape[0])
        return project(self, features_INC, k)

    monkeypatch.setattr(VlmServing, "project", recorded)
    run(folder, lambda engine: engine.calibrate(), slots=24)
    assert sizes == {count: {1, 2, 4, 8, 16, 24} for count in COUNTS}


def test_the_time_of_encoding_on_a_gpu_is_the_gpus_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark: Any = SimpleNamespace(elapsed_time=lambda later: 250.0)
    monkeypatch.setattr(vision, "_recorded", lambda: mark)
    [(_, done)] = run(folder, lambda engine: all_answers(engine, [question(count=16)]))
    assert done.latency_ms["encode"] == pytest.approx(250.0, abs=1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_encoding_is_not_told_as_reading_the_prompt(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        await engine.calibrate()
        [(_, done)] = await all_answers(engine, [question(count=16)])
        assert done.latency_ms["encode"] >= 0.5e3 * engine._batcher.governor.costs.encode.of(1)

    run(folder, use)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_serves_the_same_answers_before_and_after_it_is_made_faster(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        await engine.calibrate()
        assert {rung.device for rung in engine.ladder()} == {torch.cuda.get_device_name()}
        asked = [question(count=count) for count in (1, 16, 144)]
        eager = [await all_answers(engine, [one]) for one in asked]
        await engine.compile()
        assert [text for [(text, _)] in eager] == [(await all_answers(engine, [one]))[0][0] for one in asked]

    run(folder, use, cache_mib=0)


def test_weights_are_cast_and_positions_are_not(folder: Path) -> None:
    plain = load(folder)
    cast = on_device(load(folder), CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in cast.parameters()} == {torch.bfloat16}
    buffers = dict(plain.named_buffers())
    assert any("inv_freq" in name for name in buffers)
    for name, buffer in cast.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
        assert buffer.dtype == buffers[name].dtype, name


def test_a_server_in_bf16_turns_by_the_angles_that_training_turned_by(folder: Path) -> None:
    serving = VlmServing(folder, CPU, torch.bfloat16, num_slots=1)
    for name, buffer in serving._model.named_buffers():
        assert not buffer.is_floating_point() or buffer.dtype == torch.float32, name
    pixels = torch.zeros(1, 3, 48, 48)
    logits = serving.prefill([Row([1, 3, 8], [serving.project(serving.encode(pixels), 4)[0]])])
    assert logits.isfinite().any()

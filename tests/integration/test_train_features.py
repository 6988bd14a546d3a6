"""Settings that change how a step is computed, not what it is: each trains as the plain run does, under every stage."""

from pathlib import Path

import pytest
import torch
from tokendial.experiments import workload
from train_lab import Lab, assert_bit_equal, configured

pytestmark = pytest.mark.usefixtures("worker_process")

CLIP = (
    "model.vision.kind=clip_vision_model",
    'model.vision.config={"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64,'
    ' "image_size": 48, "patch_size": 4}',
)
EVERY = "checkpoint.every=3"


def cut_and_whole(root: Path, *overrides: str) -> Lab:
    """A run that was cut short and went on, which must end with the bits of one that was not."""
    whole = Lab(root / "whole", configured(EVERY, *overrides)).work()
    part = Lab(root / "part", whole.config).until(8)
    part.work()
    assert part.losses == whole.losses
    assert_bit_equal(part.weights, whole.weights)
    return whole


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_adapters_train_alone_and_alike_under_every_stage(zero: int, tmp_path: Path) -> None:
    plain = Lab(tmp_path / "plain", configured("zero.stage=0", "model.lora.rank=2")).work()
    run = cut_and_whole(tmp_path, f"zero.stage={zero}", "model.lora.rank=2")
    assert run.losses == pytest.approx(plain.losses, rel=1e-5)
    begun = workload("digits").load(run.config)[1].build_model(run.config).state_dict()
    changed = {name for name, value in run.weights.items() if not torch.equal(value, begun[name])}
    language = {name for name in changed if "language_model" in name or "lm_head" in name}
    assert language
    assert all("lora_" in name for name in language)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_activation_checkpointing_changes_no_loss(zero: int, tmp_path: Path) -> None:
    stage = f"zero.stage={zero}"
    plain = Lab(tmp_path / "plain", configured(stage)).work()
    run = cut_and_whole(tmp_path, stage, "activation_checkpointing=true")
    assert run.losses == pytest.approx(plain.losses, rel=1e-6)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_tower_with_weights_that_nothing_uses_trains(zero: int, tmp_path: Path) -> None:
    run = cut_and_whole(tmp_path, f"zero.stage={zero}", *CLIP)
    assert len(run.losses) == 12


OFFLOAD = [("zero=offload",), ("zero.stage=1", "zero.offload_optimizer=true")]


@pytest.mark.parametrize("overrides", OFFLOAD, ids=" ".join)
def test_offloading_changes_no_loss(overrides: tuple[str, ...], tmp_path: Path) -> None:
    run = cut_and_whole(tmp_path, *overrides)
    plain = Lab(tmp_path / "plain", configured(f"zero.stage={run.config.zero.stage}")).work()
    assert run.losses == pytest.approx(plain.losses, rel=1e-5)


@pytest.mark.parametrize("processes", [1, 2])
def test_data_read_in_processes_of_its_own_is_the_same(processes: int, tmp_path: Path) -> None:
    plain = Lab(tmp_path / "plain", configured()).work()
    run = cut_and_whole(tmp_path, f"data.num_workers={processes}", "micro_batch=4")
    assert run.losses == pytest.approx(plain.losses, rel=1e-5)

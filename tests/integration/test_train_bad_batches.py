"""A batch that is not a number is rolled back and passed over, exactly that one; the fourth ends the run."""

from pathlib import Path

import pytest
import torch
from tokendial.train.checkpoint import Checkpoint, verified
from tokendial.train.loop import NonFinite
from train_faults import fault
from train_lab import Control, Lab, assert_bit_equal, configured

pytestmark = pytest.mark.usefixtures("worker_process")


def fired(marker: Path) -> list[str]:
    return marker.read_text().splitlines()


def test_a_harmless_fault_changes_no_bit(tmp_path: Path, control: Control) -> None:
    harmless = Lab(tmp_path / "harmless", configured(*fault(tmp_path / "marker"))).work()
    assert not (tmp_path / "marker").exists()
    assert_bit_equal(harmless.weights, control().weights)


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_a_batch_that_is_not_a_number_is_passed_over_and_recorded(zero: int, tmp_path: Path, control: Control) -> None:
    settings = (f"zero.stage={zero}", "checkpoint.every=3")
    whole = control(*settings)
    lab = Lab(tmp_path / "run", configured(*settings, *fault(tmp_path / "marker", nan=[7]))).work()
    assert fired(tmp_path / "marker") == ["nan 7"]
    manifest = lab.checkpoint.manifest
    assert (manifest.step, manifest.index, manifest.skipped) == (12, 13, (7,))
    # Batches 0 to 6 are the same; the step after takes batch 8 with its own draw.
    assert lab.losses[:7] == whole.losses[:7]
    assert lab.counts[7:11] == whole.counts[8:12]
    assert all(torch.isfinite(value).all() for value in lab.weights.values())


def test_two_in_a_row_and_one_in_the_warm_up_are_passed_over(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "run", configured("checkpoint.every=3", *fault(tmp_path / "marker", nan=[1, 7, 8]))).work()
    assert fired(tmp_path / "marker") == ["nan 1", "nan 7", "nan 8"]
    manifest = lab.checkpoint.manifest
    assert (manifest.step, manifest.index, manifest.skipped) == (12, 15, (1, 7, 8))


def test_a_fourth_fails_naming_its_batch_and_no_checkpoint_holds_a_nan(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "run", configured("checkpoint.every=3", *fault(tmp_path / "marker", nan=[1, 7, 8, 10])))
    with pytest.raises(NonFinite, match="loss of global batch 10 is not finite"):
        lab.work()
    assert fired(tmp_path / "marker") == ["nan 1", "nan 7", "nan 8", "nan 10"]
    folders = sorted((lab.folder / "checkpoints").iterdir())
    assert folders
    for folder in folders:
        assert isinstance(verified(folder), Checkpoint)
        for shard in (folder / "engine").glob("*.pt"):
            assert all(finite(value) for value in torch.load(shard, weights_only=False).values())


def test_batches_passed_over_still_count_after_a_restart(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "run", configured("checkpoint.every=3", *fault(tmp_path / "marker", nan=[1, 4, 5, 10])))
    with pytest.raises(NonFinite, match="batch 10"):
        lab.work()
    with pytest.raises(NonFinite, match="batch 10"):
        lab.work()
    assert fired(tmp_path / "marker")[-1] == "nan 10"
    assert fired(tmp_path / "marker").count("nan 10") == 2


def test_resume_after_a_passed_over_batch_is_exact(tmp_path: Path) -> None:
    whole = Lab(tmp_path / "whole", configured("checkpoint.every=3", *fault(tmp_path / "a", nan=[5]))).work()
    part = Lab(tmp_path / "part", configured("checkpoint.every=3", *fault(tmp_path / "b", nan=[5]))).until(10)
    assert part.checkpoint.manifest.skipped == (5,)
    part.work()
    assert fired(tmp_path / "b") == ["nan 5"]
    assert part.losses == whole.losses
    assert_bit_equal(part.weights, whole.weights)


def finite(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(finite(item) for item in value.values())
    return all(finite(item) for item in value) if isinstance(value, list | tuple) else True

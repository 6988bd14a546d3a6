"""On one worker a run that is cut and continued ends with the same bits, at every ZeRO stage; and so does a rerun."""

from pathlib import Path

import pytest
from train_lab import Control, Lab, assert_bit_equal, configured

pytestmark = pytest.mark.usefixtures("worker_process")

# Checkpoints are at 3 (inside the first stage), 4 (its end), 6 and 9.
CUTS = {"inside the first stage": 4, "one step after a checkpoint": 7, "just before the end": 11}


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_run_cut_at_three_points_ends_with_the_bits_of_one_never_cut(
    zero: int, tmp_path: Path, control: Control
) -> None:
    whole = control(f"zero.stage={zero}", "checkpoint.every=3")
    assert len(whole.logged) == 12
    for name, cut in CUTS.items():
        part = Lab(tmp_path / name, whole.config).until(cut)
        first, logged = part.checkpoint.manifest.step if cut > 4 else 3, dict(part.logged)
        part.logged.clear()
        part.work()
        assert sorted(part.logged) == list(range(first + 1, 13)), name
        assert {**logged, **part.logged}.keys() == whole.logged.keys()
        for step, values in {**logged, **part.logged}.items():
            for metric in ("train/loss", "train/lr", "train/grad_norm"):
                assert values[metric] == whole.logged[step][metric], (name, step, metric)
        assert_bit_equal(part.weights, whole.weights)


def test_the_same_run_twice_is_bit_equal_and_another_seed_is_not(tmp_path: Path, control: Control) -> None:
    first, second = control(), Lab(tmp_path / "second", configured()).work()
    assert first.losses == second.losses
    assert_bit_equal(first.weights, second.weights)
    other = Lab(tmp_path / "other", configured("seed=1")).work()
    assert other.losses != first.losses


def test_a_resume_under_another_accumulation_gives_the_same_losses(tmp_path: Path, control: Control) -> None:
    whole = control("checkpoint.every=3")
    part = Lab(tmp_path / "part", configured("checkpoint.every=3")).until(7)
    part.config = configured("checkpoint.every=3", "micro_batch=2")
    part.work()
    assert part.losses == pytest.approx(whole.losses, rel=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_accumulation_changes_neither_draws_nor_losses(micro_batch: int, tmp_path: Path, control: Control) -> None:
    whole = control()
    parts = Lab(tmp_path / "parts", configured(f"micro_batch={micro_batch}")).work()
    assert parts.counts == whole.counts
    assert len(set(whole.counts)) > 2
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)


def test_zero_stages_agree(control: Control) -> None:
    runs = [control(f"zero.stage={zero}", "checkpoint.every=3") for zero in (0, 1, 2, 3)]
    for other in runs[1:]:
        assert other.counts == runs[0].counts
        assert other.losses == pytest.approx(runs[0].losses, rel=1e-5)


def test_an_interrupted_checkpoint_is_passed_over(tmp_path: Path, control: Control) -> None:
    whole = control("checkpoint.every=3")
    part = Lab(tmp_path / "part", whole.config).until(11)
    newest = part.checkpoint
    assert newest.manifest.step == 9
    shard = max((newest.folder / "engine").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert part.checkpoint.manifest.step == 6
    part.work()
    assert_bit_equal(part.weights, whole.weights)


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, 3), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(1, 2), (2, 1), (2, 3), (3, 1), (3, 2)])],
)
def test_another_zero_stage_converts_the_checkpoint_and_goes_on(
    before: int, after: int, tmp_path: Path, control: Control
) -> None:
    whole = control("checkpoint.every=3")
    part = Lab(tmp_path / "part", configured("checkpoint.every=3", f"zero.stage={before}")).until(8)
    part.logged = {step: values for step, values in part.logged.items() if step <= 6}
    part.config = configured("checkpoint.every=3", f"zero.stage={after}")
    part.work()
    assert (part.folder / "checkpoints" / "step-00000006-exact" / "universal").is_dir()
    assert part.losses == pytest.approx(whole.losses, rel=1e-5)


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0)])
def test_to_and_from_stage_0_is_refused_saying_what_to_do(before: int, after: int, tmp_path: Path) -> None:
    part = Lab(tmp_path / "part", configured("checkpoint.every=3", f"zero.stage={before}")).until(8)
    part.config = configured("checkpoint.every=3", f"zero.stage={after}")
    with pytest.raises(ValueError, match=rf"zero.stage {before} → {after}: no checkpoint changes .* use --from"):
        part.work()

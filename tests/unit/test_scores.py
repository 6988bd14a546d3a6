"""Scoring on several workers gives what one gives, question by question in the same order."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tokendial import runs
from tokendial.curve import ItemScores, paired_difference
from tokendial.evaluate import dtype_on
from tokendial.experiments import ConfigError, workload
from tokendial.identity import Identity
from tokendial.resolve import resolve
from tokendial.scores import Scores, examples_of, gather, grade
from tokendial.train import engine
from tokendial.twins import _recorded

CPU, DTYPE = torch.device("cpu"), torch.float32


@pytest.mark.parametrize("world", [2, 3, 8])
def test_runs_on_any_number_of_workers_are_compared_pair_by_pair(world: int) -> None:
    config = resolve("digits.tiny", ["evaluation.counts=[4]", "evaluation.batch_size=3"])
    data, task = workload("digits").load(config)
    model, examples = task.build_model(config), examples_of(data, config, "test", 20)
    alone, *shares = (
        grade(task, model, data, examples, config, (4,), CPU, DTYPE, share)
        for share in ((0, 1), *((rank, world) for rank in range(world)))
    )
    one, several = gather([alone], "test", ""), gather(shares, "test", "")
    assert several == one
    assert paired_difference({0: several.items}, {0: one.items}).mean == 0


def test_scores_come_back_with_the_digest_of_their_data_and_without_where_they_had_none(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    written = Scores("test", ItemScores(["a"], {4: [1.0]}, ["read"], "digest"), ["1"], {4: ["1"]}, {})
    written.write(path)
    assert Scores.read(path) == written
    assert written.measured()["data"] == "digest"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "data"}))
    assert Scores.read(path).items.data == ""
    for damage in ("{", "[]", "{}", '{"quality": 7}'):
        path.write_text(damage)
        with pytest.raises(ConfigError, match=re.escape(f"{path} is broken; ")):
            Scores.read(path)


def test_twins_scored_on_other_data_than_their_run_are_refused(home: Path) -> None:
    run = runs.create("it", resolve("digits.tiny", machine_cpus=None), Identity(user="ada"))
    answers = {(count, 0): ItemScores(["a"], {4: [1.0]}, (), digest) for count, digest in ((None, "x"), (4, "y"))}
    with pytest.raises(ConfigError, match="the twins of run 'it' cannot be held against it: runs that were scored on"):
        _recorded(run, "steps", (0,), answers)


def test_a_model_is_scored_again_as_training_scored_it() -> None:
    gpu = torch.device("cuda")
    config = resolve("digits.tiny")
    wanted = {"auto": torch.bfloat16, "bf16": torch.bfloat16, "fp32": torch.float32}
    for precision, dtype in wanted.items():
        trained = config.model_copy(update={"precision": precision})
        assert dtype_on(gpu, trained) is dtype is engine.precision(trained, gpu)
        assert dtype_on(CPU, trained) is torch.float32
        assert dtype_on(gpu, trained, on_cpus=True) is torch.float32, "as on the CPUs that it trained on"

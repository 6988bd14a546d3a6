"""The digits task on the tiny model: warm-up, loss, grading; and what its experiments promise."""

import subprocess
import sys

import pytest
import torch
from tokendial.contracts import RunConfig
from tokendial_workloads.digits.config import DigitsData
from tokendial_workloads.digits.data import DigitsMosaics, text_tensors
from tokendial_workloads.digits.experiments import demo, digits, tiny, twins
from tokendial_workloads.digits.questions import Turn
from tokendial_workloads.digits.task import DigitsTask
from tokendial_workloads.digits.tokenizer import digits_tokenizer
from tokendial_workloads.digits.words import GROUPS
from tokendial_workloads.digits.workload import check, cost
from tokendial_workloads.vlm.text import prompts
from torch.utils.flop_counter import FlopCounterMode

CONFIG = tiny()
DATA = DigitsMosaics()
TASK = DigitsTask()


def batch(split: str, num_examples: int) -> dict[str, object]:
    examples = DATA.datasets(CONFIG)[split]
    return DATA.collate([examples[index] for index in range(num_examples)])


def test_a_mosaic_is_graded_once_per_question_type_at_every_count() -> None:
    model, asked = TASK.build_model(CONFIG), batch("test", 5)
    features = TASK.encode(model, asked)
    for k in (1, 4, 9, 16, 144):
        grades = TASK.grade(model, features, asked, k, max_new_tokens=2)
        assert [grade.group for grade in grades] == [*GROUPS] * 5
        assert [grade.source for grade in grades] == [f"test/{index}" for index in range(5) for _ in GROUPS]
        assert all(grade.quality == float(grade.prediction == grade.target) for grade in grades)


def test_an_evaluation_prompt_ends_before_its_answer() -> None:
    tokenizer = digits_tokenizer()
    rows = text_tensors([[Turn("place", "where is 7", "b3")]], 12, torch.device("cpu"))
    assert tokenizer.decode(prompts(rows, 0)["input_ids"][0]) == "<s> <image> where is 7"


def test_the_warm_up_learns_where_digits_are() -> None:
    """The tower alone on one batch, from the loss of guessing to half of it in 120 steps."""
    model = TASK.build_model(CONFIG)
    torch.manual_seed(0)
    head, shown = TASK.warmup_head(CONFIG), batch("train", 8)
    optimizer = torch.optim.AdamW([*TASK.parts(model)["tower"].parameters(), *head.parameters()], lr=1e-2)
    losses = []
    for _ in range(120):
        total, num_targets = TASK.warmup_loss(head, TASK.encode(model, shown), shown)
        assert num_targets == 8 * 16
        optimizer.zero_grad()
        (total / num_targets).backward()
        optimizer.step()
        losses.append(total.item() / num_targets)
    assert losses[-1] < losses[0] / 2


def test_the_warm_up_head_costs_what_is_counted() -> None:
    head, shown = TASK.warmup_head(CONFIG), batch("train", 1)
    features = TASK.encode(TASK.build_model(CONFIG), shown)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        TASK.warmup_loss(head, features, shown)
    counts = cost(CONFIG)
    assert counted.get_total_flops() == pytest.approx((counts.warmup_flops() - counts.tower_flops(True)) / 3)


@pytest.mark.parametrize("experiment", [digits, demo, twins, tiny], ids=lambda experiment: experiment.__name__)
def test_every_experiment_is_consistent(experiment: object) -> None:
    assert callable(experiment)
    config = experiment()
    assert isinstance(config, RunConfig)
    check(config)
    assert RunConfig[DigitsData].model_validate_json(config.model_dump_json()) == config
    assert config.description
    assert config.workload == "digits"
    assert sum(stage.share for stage in config.stages) == config.budget.steps


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": DigitsData(turns=13)}, "data.text_tokens 73 is too small: data.turns 13 needs 79"),
        ({"data": DigitsData(evaluation_mosaics=8)}, "data.evaluation_mosaics is 8"),
    ],
    ids=["turns", "mosaics"],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check(digits().model_copy(update=change))


def test_experiments_and_workload_import_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, tokendial_workloads.digits.experiments, tokendial_workloads.digits.workload;"
        "print({'torch', 'numpy', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

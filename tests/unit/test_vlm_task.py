"""The task: logits at text positions, summed losses, distillation, prefix masks, greedy answers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokendial.contracts import Task
from tokendial_workloads.vlm.decode import greedy
from tokendial_workloads.vlm.text import expand_placeholders, prompts
from vlm_tiny import CLIP, COUNTS, QWEN2, SIGLIP, tiny_batch, tiny_run, tiny_task

TASK = tiny_task()


def tiny(projector: str = "pool", **fields: Any) -> Any:
    return TASK.build_model(tiny_run(projector, **fields)).eval()


@pytest.mark.parametrize("projector", ["pool", "query", "pool_after", "mlp"])
def test_logits_are_the_whole_models_at_the_text_positions(projector: str) -> None:
    model, batch = tiny(projector), tiny_batch()
    features = TASK.encode(model, batch)
    for k in COUNTS[projector]:
        expanded = TASK.expand(batch, k)
        logits = TASK.logits(model, features, expanded, k)
        whole = model(
            input_ids=expanded["input_ids"],
            attention_mask=expanded["attention_mask"],
            pixel_values=batch["pixel_values"],
        ).logits
        real = batch["attention_mask"].bool()
        wanted = whole.take_along_dim(expanded["text_positions"][..., None], 1)
        torch.testing.assert_close(logits[real], wanted[real], rtol=1e-4, atol=1e-4)
        expected = F.cross_entropy(whole[:, :-1].flatten(0, 1), expanded["labels"][:, 1:].flatten(), reduction="sum")
        torch.testing.assert_close(TASK.loss(logits, expanded), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(TASK.loss(logits, expanded), TASK.loss(logits, batch))
        assert TASK.num_targets(batch) == TASK.num_targets(expanded) == 7


def test_the_loss_is_a_sum_so_two_halves_add_up_to_the_whole() -> None:
    model, batch = tiny(), tiny_batch(rows=4)
    parts = []
    for rows in (slice(0, 4), slice(0, 2), slice(2, 4)):
        half = {name: value[rows] for name, value in batch.items()}
        expanded = TASK.expand(half, 4)
        parts.append(TASK.loss(TASK.logits(model, TASK.encode(model, half), expanded, 4), expanded))
    torch.testing.assert_close(parts[0], parts[1] + parts[2])


def test_expand_is_pure_and_refuses_bad_rows() -> None:
    batch = tiny_batch()
    before = {name: value.clone() for name, value in batch.items()}
    TASK.expand(batch, 4)
    assert all(torch.equal(batch[name], before[name]) for name in before)
    assert batch.keys() == before.keys()
    with pytest.raises(ValueError, match=r"exactly one image placeholder, got \[4, 4, 4\]"):
        TASK.expand(TASK.expand(batch, 4), 4)
    with pytest.raises(ValueError, match="at least 1 visual token, got 0"):
        TASK.expand(batch, 0)
    with pytest.raises(ValueError, match="padded on the right"):
        TASK.expand({**batch, "attention_mask": batch["attention_mask"].flip(1)}, 4)


def test_masked_prefixes_equal_shorter_prompts() -> None:
    model, batch = tiny("query"), tiny_batch()
    features = TASK.encode(model, batch)
    valid = torch.tensor([3, 16, 1])
    together = TASK.logits(model, features, TASK.expand(batch, 16), 16, valid_B=valid)
    for row, k in enumerate(valid.tolist()):
        alone = TASK.logits(model, features, TASK.expand(batch, k), k)
        real = batch["attention_mask"][row].bool()
        torch.testing.assert_close(together[row][real], alone[row][real], rtol=1e-4, atol=1e-4)


def test_distillation_is_the_divergence_at_answer_positions_and_teaches_only_the_student() -> None:
    model, batch = tiny(), tiny_batch()
    features = TASK.encode(model, batch)
    student, teacher = (TASK.logits(model, features, TASK.expand(batch, k), k) for k in (1, 25))
    target = batch["labels"][:, 1:] != -100
    for temperature in (1.0, 2.0):
        p, q = (x[:, :-1][target].div(temperature).softmax(-1) for x in (teacher, student))
        expected = (p * (p / q).log()).sum()
        torch.testing.assert_close(TASK.distil(student, teacher, batch, temperature), expected, rtol=1e-3, atol=1e-6)
    assert TASK.distil(student, student, batch, 1.0).item() == 0
    leaf = teacher.detach().requires_grad_()
    TASK.distil(student, leaf, batch, 1.0).backward()
    assert leaf.grad is None
    assert model.lm_head.weight.grad is not None


@pytest.mark.parametrize("fields", [{}, {"vision": SIGLIP, "language": QWEN2}, {"vision": CLIP}], ids=str)
def test_batched_greedy_answers_equal_generate_row_by_row(fields: dict[str, Any]) -> None:
    model, batch = tiny(**fields), tiny_batch()
    features = TASK.encode(model, batch)
    prompt = prompts(batch, pad_token_id=0)
    assert prompt["attention_mask"].sum(1).tolist() == [4, 6, 6]
    for k in (1, 16):
        same_length = features[1:], prompt["input_ids"][1:], prompt["attention_mask"][1:]
        unpadded = greedy(model, *same_length, k, 6, stop_ids=(2,))
        new_ids = greedy(model, features, prompt["input_ids"], prompt["attention_mask"], k, 6, stop_ids=(2,))
        for row, length in enumerate(prompt["attention_mask"].sum(1).tolist()):
            alone = {name: value[row : row + 1, :length] for name, value in prompt.items()}
            expanded = expand_placeholders(alone, k, 3)
            whole = model.generate(
                input_ids=expanded["input_ids"],
                attention_mask=expanded["attention_mask"],
                pixel_values=batch["pixel_values"][row : row + 1],
                max_new_tokens=6,
                do_sample=False,
            )
            ids = whole[0, expanded["input_ids"].shape[1] :].tolist()
            assert new_ids[row].tolist()[: len(ids)] == ids
            if row:
                assert unpadded[row - 1].tolist()[: len(ids)] == ids


def test_decoding_stops_at_the_end_token_and_pads_what_follows() -> None:
    model, batch = tiny(), tiny_batch()
    prompt = prompts(batch, pad_token_id=0)
    features = TASK.encode(model, batch)
    free = greedy(model, features, prompt["input_ids"], prompt["attention_mask"], 4, 6, stop_ids=())
    stop = int(free[0, 2])
    stopped = greedy(model, features, prompt["input_ids"], prompt["attention_mask"], 4, 6, stop_ids=(stop,))
    first = free[0].tolist().index(stop)
    assert stopped[0].tolist()[: first + 1] == free[0].tolist()[: first + 1]
    assert set(stopped[0].tolist()[first + 1 :]) <= {0}


def test_answers_are_text() -> None:
    model, batch = tiny(), tiny_batch()
    features = TASK.encode(model, batch)
    answers = TASK.answers(model, features, batch, 4, 3)
    assert len(answers) == 3
    assert all(isinstance(answer, str) for answer in answers)


def test_a_row_without_an_answer_cannot_be_asked() -> None:
    batch = tiny_batch()
    batch["labels"][1] = -100
    with pytest.raises(ValueError, match="at least one answer token"):
        prompts(batch, 0)


def test_the_warm_up_is_refused_where_a_workload_has_none() -> None:
    assert TASK.warmup_head(tiny_run()) is None
    with pytest.raises(ValueError, match="no warm-up task"):
        TASK.warmup_loss(torch.nn.Identity(), torch.zeros(1), {})


def test_the_task_offers_what_the_contract_names() -> None:
    names = [name for name in vars(Task) if not name.startswith("_") and name != "grade"]
    assert all(hasattr(TASK, name) for name in names)

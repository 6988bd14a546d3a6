"""A workload's half of serving: slots, prompts and steps of any tower, projector and language model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from served_model import picture
from tokendial.contracts.serving import Row
from tokendial.serve.request import Turn
from tokendial_workloads.vlm.decode import greedy
from tokendial_workloads.vlm.export import load, load_processor
from tokendial_workloads.vlm.prompting import PromptWriter
from tokendial_workloads.vlm.serving import VlmServing
from vlm_tiny import CLIP, COUNTS, LLAMA, QWEN2, SIGLIP, STEM, tiny_run, tiny_task

TASK = tiny_task()
CPU = torch.device("cpu")


def exported(folder: Path, projector: str = "pool", **fields: Any) -> Path:
    config = tiny_run(projector, **fields)
    TASK.export(TASK.build_model(config).eval(), config, str(folder))
    return folder


def write(serving: VlmServing, rows: list[Row], steps: list[int], joins: list[int]) -> list[list[int]]:
    """Greedy ids of each row; row i joins at turn `joins[i]` and leaves after `steps[i]` tokens."""
    written: list[list[int]] = [[] for _ in rows]
    running: list[int] = []
    turn = 0
    while turn <= max(joins) or running:
        new = [row for row, at in enumerate(joins) if at == turn]
        if new:
            for row, index in zip(new, serving.prefill([rows[row] for row in new]).argmax(-1).tolist(), strict=True):
                written[row].append(index)
            running += new
        done = [slot for slot, row in enumerate(running) if len(written[row]) >= steps[row]]
        running = [running[slot] for slot in serving.release(done)] if done else running
        if running:
            logits = serving.decode([written[row][-1] for row in running])
            for row, index in zip(running, logits.argmax(-1).tolist(), strict=True):
                written[row].append(index)
            done = [slot for slot, row in enumerate(running) if len(written[row]) >= steps[row]]
            running = [running[slot] for slot in serving.release(done)] if done else running
        turn += 1
    return written


@pytest.mark.parametrize(
    ("projector", "fields"),
    [
        ("pool", {"vision": STEM}),
        ("query", {"vision": CLIP, "language": QWEN2}),
        ("pool_after", {"vision": SIGLIP, "language": QWEN2}),
        ("mlp", {"vision": CLIP}),
    ],
    ids=["stem-pool-llama", "clip-query-qwen2", "siglip-pool_after-qwen2", "clip-mlp-llama"],
)
def test_rows_that_join_and_leave_get_the_ids_they_get_alone(
    projector: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    folder = exported(tmp_path / "model", projector, **fields)
    serving, model = VlmServing(folder, CPU, torch.float32, num_slots=5), load(folder)
    assert tuple(serving.counts)[:1] == COUNTS[projector][:1]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(9, 3, 24, 24, generator=generator)
    steps, joins = [9, 3, 12, 1, 7, 5, 2, 11, 4], [0, 0, 0, 0, 2, 3, 3, 5, 9]
    counts = [COUNTS[projector][row % len(COUNTS[projector])] for row in range(9)]
    prompts = [[1, 3, *torch.randint(5, 35, (1 + row % 4,), generator=generator).tolist()] for row in range(9)]
    features = serving.encode(pixels)
    rows = [
        Row(prompt, [serving.project(features[row : row + 1], counts[row])[0]]) for row, prompt in enumerate(prompts)
    ]
    found = write(serving, rows, steps, joins)
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        alone = greedy(
            model, model.encode(pixels[row : row + 1]), ids, torch.ones_like(ids), counts[row], steps[row], stop_ids=()
        )
        assert found[row] == alone[0].tolist(), f"row {row}"


def test_slots_grow_with_the_longest_answer_and_keep_what_they_hold(tmp_path: Path) -> None:
    serving = VlmServing(exported(tmp_path / "model"), CPU, torch.float32, num_slots=2)
    features = serving.encode(torch.zeros(1, 3, 24, 24))
    long, short = (Row([1, 3, 9], [serving.project(features, count)[0]]) for count in (25, 1))
    alone = write(serving, [long], [150], [0])[0]
    both = write(serving, [long, short], [150, 140], [0, 7])
    assert both[0] == alone
    assert len(both[1]) == 140


def columns(serving: VlmServing) -> set[int]:
    return {layer.keys.shape[2] for layer in serving._cache._slots if layer.keys is not None}


def test_slots_grow_no_further_than_the_context_and_give_back_what_is_far_too_much(tmp_path: Path) -> None:
    serving = VlmServing(exported(tmp_path / "model"), CPU, torch.float32, num_slots=3)
    serving.bound(1300 * serving._position_bytes)
    short = Row([1, 8], [])
    alone = write(serving, [short], [40], [0])[0]
    assert columns(serving) == {64}, "what every answer needs is kept"
    serving.prefill([Row([1] * 700, [])])
    assert columns(serving) == {704}
    serving.prefill([Row([1] * 1299, [])])
    assert columns(serving) == {1300}, "not twice what there was"
    serving.decode([9, 9])
    first = serving.prefill([short]).argmax(-1).tolist()
    assert serving.release([0, 1]) == [2]
    assert columns(serving) == {1300}, "what was needed until now"
    found = list(first)
    while len(found) < 40:
        found += serving.decode(found[-1:]).argmax(-1).tolist()
    assert found == alone
    serving.release([0])
    assert columns(serving) == {128}, "for one of 41 columns, with as much to grow"
    assert write(serving, [short], [40], [0])[0] == alone


def test_slots_that_are_empty_between_two_long_sequences_keep_what_both_need(tmp_path: Path) -> None:
    serving = VlmServing(exported(tmp_path / "model"), CPU, torch.float32, num_slots=3)
    long = Row([1] * 600, [])
    alone = write(serving, [long], [5], [0])
    held = [layer.keys for layer in serving._cache._slots]
    assert columns(serving) == {640}
    assert write(serving, [long], [5], [0]) == alone
    assert all(layer.keys is keys for layer, keys in zip(serving._cache._slots, held, strict=True))
    write(serving, [Row([1, 8], [])], [5], [0])
    assert columns(serving) == {64}


def test_a_bound_of_bytes_bounds_the_context(tmp_path: Path) -> None:
    serving = VlmServing(exported(tmp_path / "model"), CPU, torch.float32, num_slots=3)
    whole, row = serving.context, Row([1] * 70, [])
    serving.bound(2**40)
    assert serving.context == whole
    serving.prefill([row])
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in serving._cache._slots)  # type: ignore[union-attr]
    serving.release([0])
    serving.bound(held)
    assert serving.context == serving._cache.context == 128
    serving.bound(held // 64)
    assert serving.context == 2


def test_what_is_not_a_number_stays_with_the_row_that_had_it(tmp_path: Path) -> None:
    serving = VlmServing(exported(tmp_path / "model"), CPU, torch.float32, num_slots=2)
    features = serving.encode(torch.zeros(1, 3, 24, 24))
    tokens = serving.project(features, 25)[0]
    long, short = Row([1, 3, 9], [tokens]), Row([1, 8], [])
    alone = write(serving, [long, short], [8, 8], [0, 1])
    assert serving.prefill([Row([1, 3, 9], [tokens * torch.nan])] * 2).isnan().any()
    serving.release([0, 1])
    assert write(serving, [long, short], [8, 8], [0, 1]) == alone


def test_a_prefill_that_fails_takes_no_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = VlmServing(exported(tmp_path / "model"), CPU, torch.float32, num_slots=2)
    rows = [Row([1, 8], []), Row([1, 9], [])]
    alone = write(serving, rows, [4, 4], [0, 0])
    with monkeypatch.context() as patch:
        patch.setattr(serving._model.lm_head, "forward", lambda hidden: hidden.new_empty(-1))
        with pytest.raises(RuntimeError):
            serving.prefill(rows)
    assert write(serving, rows, [4, 4], [0, 0]) == alone


def test_text_without_images_is_read_too(tmp_path: Path) -> None:
    serving, model = VlmServing(exported(tmp_path / "m"), CPU, torch.float32, 2), load(tmp_path / "m")
    found = write(serving, [Row([1, 8, 9], [])], [4], [0])[0]
    whole: Any = model
    ids = whole.generate(input_ids=torch.tensor([[1, 8, 9]]), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert found == ids[0, 3:].tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_give_the_tokens_that_launches_give(tmp_path: Path) -> None:
    serving = VlmServing(exported(tmp_path / "m"), torch.device("cuda"), torch.bfloat16, 2)
    images = torch.stack([serving.image(picture(seed)) for seed in (0, 1)])
    eager = [serving.project(serving.encode(image[None]), k) for image in images for k in serving.counts[:3]]
    for capture in serving.captures(images[0], serving.counts[:3]):
        capture()
    replayed = [serving.project(serving.encode(image[None]), k) for image in images for k in serving.counts[:3]]
    for one, other in zip(eager, replayed, strict=True):
        assert torch.equal(one, other)
    assert serving.encode(images).shape[0] == 2, "graphs are of single images"


def test_the_placeholder_is_never_written(tmp_path: Path) -> None:
    serving = VlmServing(exported(tmp_path / "model"), CPU, torch.float32, 2)
    logits = serving.prefill([Row([1, 8], [])])
    assert logits[0, 3] == -torch.inf
    assert torch.isfinite(logits).sum() == logits.numel() - 1


def test_sliding_windows_are_refused_rather_than_served_wrongly(tmp_path: Path) -> None:
    folder = exported(tmp_path / "model", language=QWEN2)
    text = (folder / "config.json").read_text()
    assert '"full_attention"' in text
    (folder / "config.json").write_text(text.replace('"full_attention"', '"sliding_attention"', 1))
    with pytest.raises(ValueError, match=r"sliding_attention.*only full_attention can be served"):
        VlmServing(folder, CPU, torch.float32, 2)


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.0], "long_factor": [4.0, 9.0]}
BOUNDED = {
    "sliding window": ({"sliding_window": 30}, "mistral", 29),
    "no window": ({"sliding_window": None, "max_position_embeddings": 64}, "mistral", 64),
    "longrope": ({"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 30}}, "llama", 30),
}


@pytest.mark.parametrize(("fields", "kind", "context"), BOUNDED.values(), ids=BOUNDED)
def test_answers_go_no_further_than_where_each_is_that_of_full_attention_and_its_own(
    fields: dict[str, Any], kind: str, context: int, tmp_path: Path
) -> None:
    language = LLAMA.model_copy(update={"kind": kind, "config": {**LLAMA.config, **fields}})
    folder = exported(tmp_path / "model", language=language)
    serving, model = VlmServing(folder, CPU, torch.float32, num_slots=2), load(folder)
    assert serving.context == context
    pixels = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    features = serving.encode(pixels)
    counts, steps = (16, 1), (context - 18, context - 5)
    rows = [Row([1, 3, 8], [serving.project(features, count)[0]]) for count in counts]
    found = write(serving, rows, list(steps), [0, 3])
    ids = torch.tensor([[1, 3, 8]])
    for row, (count, most) in enumerate(zip(counts, steps, strict=True)):
        alone = greedy(model, model.encode(pixels), ids, torch.ones_like(ids), count, most, stop_ids=())
        assert found[row] == alone[0].tolist(), f"row {row}"


TEMPLATES = {
    "as it is": "{{ bos_token }} {% for m in messages %}{% for p in m.content %}"
    "{{ '<image>' if p.type == 'image' else p.text }} {% endfor %}{% endfor %}",
    "trimming": "{{ bos_token }} {% for m in messages %}{{ m.role }}: {% for p in m.content %}"
    "{{ '<image>' if p.type == 'image' else p.text | trim }} {% endfor %}{{ eos_token }} {% endfor %}",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_are_those_of_the_processor(template: str, tmp_path: Path) -> None:
    processor: Any = load_processor(exported(tmp_path / "model"))
    processor.chat_template = TEMPLATES[template]
    writer = PromptWriter(processor)
    turns = [Turn("system", ("w1 w2",)), Turn("user", (0, "  w3 w4 ", 1, "w5\n")), Turn("assistant", ("w6",))]
    told = [
        {
            "role": turn.role,
            "content": [
                {"type": "image"} if isinstance(part, int) else {"type": "text", "text": part} for part in turn.parts
            ],
        }
        for turn in turns
    ]
    text = processor.apply_chat_template(told, add_generation_prompt=True)
    assert writer.ids(turns) == processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_conversation_that_the_template_refuses_is_refused(tmp_path: Path) -> None:
    processor: Any = load_processor(exported(tmp_path / "model"))
    processor.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}<s>"
        "{% for m in messages %}{% for p in m.content %}{% if p.type != 'image' %} {{ p.text }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    writer = PromptWriter(processor)
    with pytest.raises(ValueError, match="no system turns"):
        writer.ids([Turn("system", ("w1",))])
    with pytest.raises(ValueError, match="writes 0 of 1 images"):
        writer.ids([Turn("user", (0, "w1"))])
    with pytest.raises(ValueError, match="U\\+FDD0"):
        writer.ids([Turn("user", ("\ufdd0",))])


def test_text_that_cannot_be_told_from_a_special_token_is_refused(tmp_path: Path) -> None:
    """This tokenizer's vocabulary of whole words holds its special tokens too."""
    writer = PromptWriter(load_processor(exported(tmp_path / "model")))
    with pytest.raises(ValueError, match=r"'<image>', which this model cannot read as text"):
        writer.ids([Turn("user", (0, "w1 <image> w2"))])

"""The engine on a real exported folder: answers equal offline ones whatever else is served, and slots come back."""

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from served_model import COUNTS, TEXTS, all_answers, answered, export_model, offline_answers, picture, question, run
from tokendial.experiments import ConfigError
from tokendial.serve.engine import Engine, _bound
from tokendial.serve.request import Ask, BadRequest, Busy, Deadline, Done, Sampling, ServeRequest, Turn
from tokendial.serve.settings import EngineSettings
from tokendial_workloads.images import decode_image
from tokendial_workloads.vlm.export import load, load_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def offline(folder: Path) -> Callable[[ServeRequest], str]:
    return offline_answers(folder)


def test_answers_equal_offline_generation_in_mixed_batches_at_several_counts(folder: Path, offline: Any) -> None:
    """Thirty requests over eight slots: they join and leave each other's batches at different lengths."""
    requests = [
        question(TEXTS[number % 5], count, image=number % 7, new_tokens=3 + 5 * (number % 4))
        for number, count in enumerate([1, 4, 9, 16, 144, 100] * 5)
    ]
    found = run(folder, lambda engine: all_answers(engine, requests), slots=8)
    assert [text for text, _ in found] == [offline(request) for request in requests]
    assert len({text for text, _ in found}) > 10
    assert [done.visual_tokens for _, done in found] == [(request.asks[0].count,) for request in requests]


def test_a_cached_image_gives_the_same_answer_at_the_same_and_at_another_count(folder: Path, offline: Any) -> None:
    async def use(engine: Engine) -> list[str]:
        texts = [(await answered(engine, question(count=count)))[0] for count in (16, 16, 4, 4)]
        load = engine.load_state()
        assert load.cache_hits > 0
        assert load.cached_bytes > 0
        return texts

    expected = [offline(question(count=count)) for count in (16, 16, 4, 4)]
    assert run(folder, use) == expected
    assert expected[0] != expected[2]
    assert run(folder, lambda engine: all_answers(engine, [question(count=16)]), cache_mib=0)[0][0] == expected[0]


@torch.no_grad()
def without_cache(folder: Path, pieces: list[str | tuple[bytes, int]], steps: int) -> str:
    """Greedy text from texts and (image, count) pieces, by whole forward passes over joined embeddings."""
    model, processor = load(folder), load_processor(folder)
    joined = []
    for piece in pieces:
        if isinstance(piece, str):
            ids = processor.tokenizer(piece, add_special_tokens=False, return_tensors="pt")["input_ids"]
            joined.append(model.get_input_embeddings()(ids))
        else:
            pixels = processor.image_processor(decode_image(piece[0]), return_tensors="pt")["pixel_values"]
            joined.append(model.project(model.encode(pixels), piece[1]))
    embeds, written = torch.cat(joined, dim=1), []
    for _ in range(steps):
        logits = model.lm_head(model.model.language_model(inputs_embeds=embeds).last_hidden_state[:, -1])
        logits[:, model.config.image_token_id] = -torch.inf
        written.append(int(logits.argmax()))
        if written[-1] == processor.tokenizer.eos_token_id:
            break
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([written[-1:]]))], dim=1)
    return processor.decode(written, skip_special_tokens=True)


def test_several_images_of_different_counts_share_a_prompt(folder: Path) -> None:
    requests = [
        replace(
            question(),
            turns=(Turn("user", (0, "what is b3", 1, text)),),
            images=(picture(first), picture(second)),
            asks=(Ask(4), Ask(16)),
        )
        for text, first, second in (("what is a1", 1, 2), ("odd", 2, 1), ("where is 4", 3, 3))
    ]
    found = run(folder, lambda engine: all_answers(engine, requests))
    assert {done.visual_tokens for _, done in found} == {(4, 16)}
    assert found[0][1].prompt_tokens == 20 + 1 + 6
    for (text, _), request in zip(found, requests, strict=True):
        first, second = request.images
        last = str(request.turns[0].parts[-1])
        assert text == without_cache(folder, ["<s>", (first, 4), "what is b3", (second, 16), last], 12)


def test_the_end_tells_tokens_quality_reason_and_where_time_went(folder: Path) -> None:
    _, done = run(folder, lambda engine: answered(engine, question(count=16, new_tokens=5)))
    assert done.completion_tokens <= 5
    assert done.finish_reason == ("stop" if done.completion_tokens < 5 else "length")
    assert done.expected_quality == 0.9
    assert done.reason == "asked"
    assert done.prompt_tokens == 16 + 1 + 3
    assert set(done.latency_ms) == {"queue", "image", "encode", "prefill", "decode", "total"}
    assert all(part >= 0 for part in done.latency_ms.values())
    parts = sum(part for name, part in done.latency_ms.items() if name != "total")
    assert done.latency_ms["total"] == pytest.approx(parts, rel=0.2, abs=3)


def test_a_closed_iterator_frees_its_slot(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        long = question(new_tokens=1000)
        async with aclosing(engine.generate(long)) as pieces:
            await anext(pieces)
            assert engine.load_state().running == 1
        text, _ = await answered(engine, question(count=4))
        assert text
        load = engine.load_state()
        assert (load.running, load.queued, load.counters.cancelled) == (0, 0, 1)
        assert load.wanted_tokens == 0

    run(folder, use, slots=1)


def test_a_cancelled_task_leaves_the_queue(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        first = asyncio.create_task(answered(engine, question(new_tokens=400)))
        second = asyncio.create_task(answered(engine, question(TEXTS[1])))
        while engine.load_state().running + engine.load_state().queued < 2:
            await asyncio.sleep(0.001)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await first
        assert engine.load_state().counters.finished == 1

    run(folder, use, slots=1)


def test_a_full_queue_refuses_and_says_when_to_try_again(folder: Path) -> None:
    async def use(engine: Engine) -> list[Any]:
        sent = [answered(engine, question(image=number, new_tokens=50)) for number in range(12)]
        return await asyncio.gather(*sent, return_exceptions=True)

    found = run(folder, use, slots=1, max_queue=4)
    refused = [item for item in found if isinstance(item, Busy)]
    assert len(refused) >= 6
    assert all(busy.retry_after_s > 0 and (busy.full, busy.cause) == (True, "busy") for busy in refused)
    assert sum(isinstance(item, tuple) for item in found) == 12 - len(refused)


def test_work_not_started_in_time_is_dropped(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        first = asyncio.create_task(answered(engine, question(new_tokens=500)))
        await asyncio.sleep(0.05)
        with pytest.raises(Busy, match="not started in time") as late:
            await answered(engine, question(TEXTS[1], deadline=Deadline(0.02)))
        assert (late.value.full, late.value.cause) == (False, "expired")
        first.cancel()
        assert engine.load_state().counters.expired == 1

    run(folder, use, slots=1)


def test_a_seed_reproduces_a_sampled_answer_alone_and_in_a_crowd(folder: Path) -> None:
    def sampled(seed: int, **fields: Any) -> ServeRequest:
        return question(sampling=Sampling(20, temperature=1.5, seed=seed, **fields))

    alone = run(folder, lambda engine: answered(engine, sampled(3)))[0]
    crowd = run(folder, lambda engine: all_answers(engine, [sampled(seed) for seed in range(8)]))
    assert crowd[3][0] == alone
    assert len({text for text, _ in crowd}) > 4
    greedy = run(folder, lambda engine: answered(engine, question(new_tokens=20)))[0]
    assert run(folder, lambda engine: answered(engine, sampled(3, top_p=1e-9)))[0] == greedy


def test_an_answer_ends_before_its_stop_string(folder: Path) -> None:
    whole = run(folder, lambda engine: answered(engine, question(new_tokens=12)))[0]
    words = whole.split(" ")
    assert len(words) > 4
    stop = " ".join(words[2:4])
    expected = whole[: whole.index(stop)]
    text, done = run(folder, lambda engine: answered(engine, question(sampling=Sampling(12, stop=("zzz", stop)))))
    assert text == expected
    assert done.finish_reason == "stop"
    assert done.completion_tokens < 12


BAD: dict[str, tuple[ServeRequest, str, str]] = {
    "a count that is not admissible": (question(count=5), "visual_tokens", "admissible: 1, 4, 9, 16"),
    "a damaged image": (replace(question(), images=(picture()[:-100],)), "images.0", "damaged or truncated"),
    "no image at all": (replace(question(), images=(b"",)), "images.0", "empty"),
    "too many images": (
        replace(question(), images=(picture(),) * 5, asks=(Ask(),) * 5, turns=(Turn("user", (0, 1, 2, 3, 4)),)),
        "messages",
        "at most 4",
    ),
    "an image that is not shown": (replace(question(), turns=(Turn("user", ("odd",)),)), "messages", "each in order"),
    "too long an answer": (question(new_tokens=5000), "max_completion_tokens", "1 to 1024 are allowed"),
    "too long a prompt": (question("what " * 9000), "messages", "9145 tokens"),
    "more text than a prompt could hold": (question("what " * 30_000), "messages", "150000 characters"),
    "quality out of reach": (question(min_quality=0.99), "slo.min_quality", "best is 0.950"),
    "quality above an exact count": (question(count=4, min_quality=0.9), "slo.min_quality", "0.500 of 4"),
}


@pytest.fixture(scope="module")
def checking(folder: Path) -> Any:
    engine = Engine.load(folder, EngineSettings(threads=1))
    yield engine
    asyncio.run(engine.close())


@pytest.mark.parametrize("kind", BAD)
def test_bad_requests_are_refused_by_field_before_they_take_a_place(kind: str, checking: Engine) -> None:
    request, where, message = BAD[kind]
    with pytest.raises(BadRequest, match=message) as refused:
        checking.check(request)
    assert refused.value.field == where
    with pytest.raises(BadRequest, match=message):
        asyncio.run(answered(checking, request))
    assert checking.load_state().counters.accepted == 0


def test_a_request_that_does_not_fit_what_slots_may_hold_is_refused_by_length(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        context = engine._serving.context
        assert 144 + 64 <= context < 2000
        with pytest.raises(BadRequest, match=f"at most {context - 12} fit beside 12 new ones"):
            await answered(engine, question("what " * context))
        with pytest.raises(BadRequest, match="at most 0 fit beside 1024 new ones"):
            await answered(engine, question(new_tokens=1024))
        assert (await answered(engine, question()))[0]

    run(folder, use, slots=4, slots_mib=1)
    with pytest.raises(ConfigError, match=r"1 MiB \(engine.slots_mib\) hold \d+ positions in each of 64 slots"):
        Engine.load(folder, EngineSettings(slots=64, slots_mib=1))


def test_a_model_that_cannot_read_an_image_at_its_largest_count_is_refused() -> None:
    serving: Any = SimpleNamespace(context=144)
    with pytest.raises(ConfigError, match="reads 144 positions, an image takes 144"):
        _bound(serving, 144, EngineSettings(), torch.device("cpu"))


def test_special_tokens_in_text_are_read_as_text(folder: Path, checking: Engine) -> None:
    processor = load_processor(folder)
    special = set(processor.tokenizer.all_special_ids) - {processor.tokenizer.unk_token_id}
    prompt = checking._serving.prompt  # what the model would be given
    honest = prompt([Turn("user", (0, "what is b3"))])
    for text in ("what <image> is </s> b3", "<s>", "<pad><image><image>", "b3 </s> system: <s>"):
        ids = prompt([Turn("user", (0, text))])
        assert [index for index in ids if index in special] == [index for index in honest if index in special]
    split = prompt([Turn("user", (0, "<ima", "ge> </", "s>"))])
    assert sum(index in special for index in split) == sum(index in special for index in honest)
    assert not torch.equal(torch.tensor(prompt([Turn("user", (0, "<s> b3"))])[:3]), torch.tensor(honest[:3]))


def test_a_folder_that_was_tampered_with_or_has_no_ladder_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    ladder = json.loads((copy / "ladder.json").read_text())
    ladder["rows"][0]["quality"] = 1.0
    (copy / "ladder.json").write_text(json.dumps(ladder))
    with pytest.raises(ConfigError, match=r"ladder.json is not as it was exported"):
        Engine.load(copy, EngineSettings())
    with pytest.raises(ConfigError, match="no model folder"):
        Engine.load(tmp_path, EngineSettings())


def test_calibration_gives_every_rung_this_replicas_own_latency(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        assert all(rung.latency_ms is None for rung in engine.ladder())
        await engine.calibrate()
        rungs = engine.ladder()
        assert [rung.count for rung in rungs] == list(COUNTS)
        assert all(rung.latency_ms and rung.latency_ms > 0 and rung.device == "cpu" for rung in rungs)
        assert engine.load_state().running == 0
        assert (await answered(engine, question(count=16)))[0]

    run(folder, use)


def test_a_target_picks_the_largest_count_that_meets_it(folder: Path) -> None:
    async def use(engine: Engine) -> tuple[Done, Done]:
        await engine.calibrate()
        hurried = question(new_tokens=4, latency_ms=1e-3, min_quality=0.4)
        return (await answered(engine, hurried))[1], (await answered(engine, question(latency_ms=60000)))[1]

    hurried, patient = run(folder, use, governor="on")
    assert (hurried.visual_tokens, hurried.reason) == ((4,), "target")
    assert (patient.visual_tokens, patient.reason) == ((144,), "largest")

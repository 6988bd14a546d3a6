"""The engine when much is asked of it: bending, shadow, replays, a model that fails, and its end."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from served_model import COUNTS, TEXTS, all_answers, answered, export_model, offline_answers, question, run
from tokendial.failures import WorkFailed
from tokendial.serve import pulse
from tokendial.serve.costs import Costs, Line, Text
from tokendial.serve.engine import Engine
from tokendial.serve.pulse import MOST_FAILURES
from tokendial.serve.replica import EngineReplica
from tokendial.serve.request import Done, Sampling, ServeRequest, Turn
from tokendial_workloads.vlm.serving import VlmServing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def offline(folder: Path) -> Callable[[ServeRequest], str]:
    return offline_answers(folder)


async def crowd(engine: Engine, quick: int, size: int = 30) -> list[Done]:
    """Consenting questions sent at once to an engine that believes counts above `quick` to be very slow."""
    await engine.calibrate()
    costs = {count: Line(0.0, 1e-4 if count <= quick else 1.0) for count in COUNTS}
    believed = Costs(Line(0.0, 0.0), costs, dict.fromkeys(COUNTS, Line(0.0, 0.0)), batch=1)
    engine._batcher.governor.recost(believed)
    return [done for _, done in await all_answers(engine, [asked(number) for number in range(size)])]


def asked(number: int, count: int | None = None) -> ServeRequest:
    return question(TEXTS[number % 5], count, image=number, new_tokens=2, may_bend=True)


@pytest.mark.parametrize("count", [1, 16])
def test_bent_answers_are_written_again_at_full_count_when_idle(count: int, folder: Path, offline: Any) -> None:
    """At 16 tokens this model mostly says what it says at 144, at 1 it does not."""

    async def use(engine: Engine) -> None:
        done = await crowd(engine, quick=count)
        bent = [one for one in done if one.visual_tokens == (count,)]
        assert len(bent) > 20
        assert {one.reason for one in bent} == {"bent"}, "because of the load, not of a target"
        assert {one.wanted_tokens for one in done} == {(144,)}
        while engine.load_state().counters.replayed < 16:
            await asyncio.sleep(0.01)
        load = engine.load_state()
        equal = [offline(asked(number)) == offline(asked(number, count)) for number in range(30)]
        assert round(sum(equal) / 30) == (count == 16)
        assert load.agreement[count] == pytest.approx(sum(equal) / 30, abs=0.25)
        assert load.counters.bent == sum(one.visual_tokens != (144,) for one in done)
        assert load.counters.finished == 30
        assert (load.running, load.wanted_tokens) == (0, 0)

    run(folder, use, governor="on", replay_share=1.0, target_ms=60000)


def test_the_shadow_answers_at_full_count_and_counts_what_it_would_have_bent(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        done = await crowd(engine, quick=1)
        shadowed = [one for one in done if one.reason == "shadow"]
        assert {one.visual_tokens for one in done} == {(144,)}
        assert len(shadowed) > 20
        counters = engine.load_state().counters
        assert (counters.bent, counters.shadow_bent) == (0, len(shadowed))
        assert counters.images == {144: 30}

    run(folder, use, governor="shadow", target_ms=60000)


@pytest.mark.parametrize("words", [600, 1200])
def test_a_long_text_does_not_pass_for_a_slow_machine(words: int, folder: Path) -> None:
    """Of 600 words each is known to take half a millisecond; 1200 are more than was ever measured, and dearer."""

    async def use(engine: Engine) -> None:
        serving: Any = engine._serving
        whole = serving.prefill

        def slow(rows: Any) -> torch.Tensor:
            length = len(rows[0].ids)
            time.sleep(5e-4 * length + 5e-3 * max(0, length - 1000))
            return whole(rows)

        line = {max(COUNTS): Line(0.0, 1e-3)}
        text = Text(few=10, many=1000, read_token_s=5e-4)
        engine._batcher.governor.recost(Costs(Line(0.0, 0.0), line, line, batch=1, text=text))
        serving.prefill = slow
        asked = replace(question(), turns=(Turn("user", ("what " * words,)),), images=(), asks=())
        await answered(engine, replace(asked, sampling=Sampling(1)))
        assert engine.load_state().cost_scale < 2

    run(folder, use, governor="on")


@pytest.mark.parametrize(("most", "many"), [(300, 296), (2000, 508)])
def test_calibration_learns_what_text_costs(most: int, many: int, folder: Path) -> None:
    async def use(engine: Engine) -> None:
        await engine.calibrate()
        text = engine._batcher.governor.costs.text
        assert 0 < text.few < 20
        assert text.many == many
        assert 0 < text.read_s(many) < 10
        assert text.read_s(text.few) == 0
        assert engine.load_state().running == 0
        serving: Any = engine._serving
        assert max(layer.keys.shape[2] for layer in serving._cache._slots) <= 512, "columns of every slot"

    run(folder, use, max_prompt_tokens=most)


def test_an_idle_engine_reads_those_together_that_it_lets_come_together(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        batcher = engine._batcher
        until = time.monotonic() + 1.0
        batcher.gathering_s = lambda now, slots: max(0.0, until - now) if batcher.num_waiting else inf  # type: ignore[method-assign]
        first = asyncio.ensure_future(answered(engine, asked(0)))
        await asyncio.sleep(0.3)
        await asyncio.gather(first, answered(engine, asked(1)))
        counters = engine.load_state().counters
        assert (counters.batches, counters.batched) == (1, 2)

    run(folder, use, governor="off")


def test_a_model_that_fails_ends_its_requests_and_goes_on(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        serving: Any = engine._serving
        whole, calls = serving.decode, []

        def failing(ids: list[int]) -> torch.Tensor:
            calls.append(len(ids))
            # In the middle of the first answers, and whenever those come that were not there yet.
            if len(calls) >= 3:
                raise RuntimeError("out of memory")
            return whole(ids)

        serving.decode = failing
        sent = [answered(engine, question(image=number)) for number in range(4)]
        found = await asyncio.gather(*sent, return_exceptions=True)
        assert all(isinstance(one, WorkFailed) for one in found)
        assert "out of memory" in str(found[0])
        serving.decode = whole
        text, _ = await answered(engine, question())
        assert text
        load = engine.load_state()
        assert (load.alive, load.running, load.counters.failed, load.counters.finished) == (True, 0, 4, 1)

    run(folder, use)


async def checked(engine: Engine) -> str:
    """What the health check of a replica says of its engine; nothing where it is healthy."""
    try:
        await EngineReplica.check_health(SimpleNamespace(_engine=engine))  # type: ignore[arg-type]
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("how", ["raises", "no numbers"])
@pytest.mark.parametrize(("at", "kind"), [("prefill", "read"), ("decode", "write")])
def test_a_model_that_fails_pass_after_pass_is_not_healthy(folder: Path, at: str, kind: str, how: str) -> None:
    async def use(engine: Engine) -> None:
        serving: Any = engine._serving
        whole = getattr(serving, at)

        def broken(given: Any) -> torch.Tensor:
            if how == "raises":
                raise RuntimeError("device-side assert triggered")
            return whole(given) * torch.nan

        async def fail(*numbers: int) -> None:
            setattr(serving, at, broken)
            for number in numbers:
                with pytest.raises(WorkFailed):
                    await answered(engine, question(image=number))
            setattr(serving, at, whole)

        await fail(*range(1, MOST_FAILURES))
        assert await checked(engine) == ""
        await answered(engine, question())
        await fail(*range(1, MOST_FAILURES))
        assert await checked(engine) == "", "an answer between them tells that the model works"
        await fail(*[1] * MOST_FAILURES)
        assert await checked(engine) == "", "one bad request that is sent again and again tells nothing new"
        await fail(0)
        told = f"{MOST_FAILURES} passes to {kind}, each of another request, failed one after another"
        assert await checked(engine) == told

    run(folder, use)


@pytest.mark.parametrize("forecast_s", [0.001, 1.0])
def test_a_model_that_hangs_is_not_healthy(forecast_s: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(engine: Engine) -> None:
        serving: Any = engine._serving
        line = {max(COUNTS): Line(0.0, forecast_s)}
        engine._batcher.governor.recost(Costs(Line(0.0, 0.0), line, line, batch=1))
        whole, begun, ends = serving.prefill, threading.Event(), threading.Event()

        def hanging(rows: Any) -> torch.Tensor:
            begun.set()
            ends.wait(30)
            return whole(rows)

        serving.prefill = hanging
        waiting = asyncio.ensure_future(answered(engine, question()))
        assert await asyncio.to_thread(begun.wait, 30)
        assert await checked(engine) == ""
        monkeypatch.setattr(pulse, "LONGEST_TURN_S", 0.1)
        await asyncio.sleep(0.2)
        assert ("in one turn for" in await checked(engine)) == (forecast_s < 0.01), "ten times its forecast it may take"
        ends.set()
        await waiting
        await asyncio.sleep(0.2)
        assert await checked(engine) == "", "one that waits for work is in no turn"
        await engine.close()
        assert await checked(engine) == "the engine's thread has ended"

    run(folder, use)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("at", ["prefill", "decode"])
def test_logits_that_are_no_numbers_end_their_own_request_and_no_other(
    folder: Path, at: str, temperature: float
) -> None:
    async def use(engine: Engine) -> None:
        serving: Any = engine._serving
        whole = getattr(serving, at)

        def broken(given: Any) -> torch.Tensor:
            logits = whole(given).clone()
            logits[0, 0] = torch.nan
            return logits

        setattr(serving, at, broken)
        sampling = Sampling(12, temperature=temperature, seed=0)
        sent = [answered(engine, question(image=number, sampling=sampling)) for number in range(3)]
        found = await asyncio.gather(*sent, return_exceptions=True)
        failed = [one for one in found if isinstance(one, WorkFailed)]
        assert failed
        assert "not numbers" in str(failed[0])
        setattr(serving, at, whole)
        assert (await answered(engine, question()))[0]
        load = engine.load_state()
        assert (load.alive, load.running) == (True, 0)
        assert (load.counters.failed, load.counters.finished) == (len(failed), 4 - len(failed))

    run(folder, use)


def test_a_count_whose_answers_disagree_is_bent_to_no_longer(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        while not engine.load_state().barred:
            await crowd(engine, quick=1)
            replayed = engine.load_state().counters.replayed
            while engine.load_state().counters.replayed == replayed:
                await asyncio.sleep(0.01)
        assert engine.load_state().barred == (1,)
        done = await crowd(engine, quick=1)
        assert min(one.visual_tokens for one in done) == (4,)

    run(folder, use, governor="on", replay_share=1.0, target_ms=60000, min_agreement=0.9)


def test_faster_forms_are_made_while_answers_are_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(engine: Engine) -> None:
        written, made = [], []
        compiling = asyncio.get_running_loop().create_future()

        def capture() -> None:
            made.append((threading.current_thread().name, len(written)))
            if len(made) == 3:
                raise RuntimeError("no room for a graph")

        monkeypatch.setattr(VlmServing, "captures", lambda serving, pixels, counts: [capture] * len(counts))
        async for item in engine.generate(question(new_tokens=1000)):
            written.append(item)
            if len(written) == 5:
                compiling = asyncio.ensure_future(engine.compile())
        with pytest.raises(RuntimeError, match="no room for a graph"):
            await compiling
        assert [thread for thread, _ in made] == ["tokendial-engine"] * 3
        assert made[0][1] < made[-1][1] < len(written), "between turns of the answer"
        assert (await answered(engine, question()))[1].completion_tokens > 0

    run(folder, use, max_new_tokens=1000)


def test_on_a_cpu_there_is_nothing_to_capture(folder: Path) -> None:
    assert not VlmServing(folder, torch.device("cpu"), torch.float32, 1).captures(torch.zeros(3, 48, 48), COUNTS)


def test_a_closed_engine_fails_what_is_unfinished_and_refuses_more(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        unfinished = asyncio.create_task(answered(engine, question(new_tokens=1000)))
        while not engine.load_state().running:
            await asyncio.sleep(0.001)
        await engine.close()
        with pytest.raises(WorkFailed, match="closed"):
            await unfinished
        with pytest.raises(WorkFailed, match="closed"):
            await answered(engine, question())
        assert not engine.load_state().alive

    run(folder, use)

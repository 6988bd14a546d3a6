"""What the engine makes of a model wide enough for the dial to pay: counts, batches, and the governor under load.

The model is one of random weights (256 patches, width 256), since speed does not depend on what is learned. Images are
all different and nothing is cached, so every request pays for all of its work.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokendial.bench.open_loop import noise
from tokendial.bench.records import Row, single, spread
from tokendial.bench.untrained import export_untrained
from tokendial.contracts import RunConfig
from tokendial.experiments import workload
from tokendial.failures import WorkFailed
from tokendial.model_folder import answer_flops
from tokendial.resolve import resolve
from tokendial.serve.engine import Engine
from tokendial.serve.request import Ask, Busy, Done, Sampling, ServeRequest, Turn
from tokendial.serve.settings import EngineSettings

COUNTS = (16, 64, 144, 256)
OVERRIDES = (
    "data.turns=1",
    "data.text_tokens=7",
    "schedule=uniform",
    "schedule.counts=[16,64,144,256]",
    "evaluation.counts=[16,64,144,256]",
    "model.vision.kind=siglip_vision_model",
    'model.vision.config={"hidden_size":256,"num_attention_heads":4,"intermediate_size":768,"num_hidden_layers":2,'
    '"image_size":48,"patch_size":3}',
    "model.language.kind=llama",
    'model.language.config={"hidden_size":256,"num_attention_heads":4,"intermediate_size":768,"num_hidden_layers":8}',
)
CONCURRENCY = 32
SHORT, LONG = 4, 32  # new tokens of an answer: a label, a caption
LEAST_OF_FLOPS = 0.85
LEAST_BATCHING = 2.0
MOST_LATE = 0.01


def bench_model(folder: Path) -> Path:
    """Export the bench model, whose answers are as long as was asked for; its quality rises with the count."""
    quality = {count: rank / len(COUNTS) for rank, count in enumerate(COUNTS, 1)}
    return export_untrained(configuration(), folder, quality, endless=True)


def configuration() -> RunConfig[Any]:
    """The configuration of the bench model."""
    return resolve("digits.tiny", OVERRIDES, machine_cpus=None)


async def count_rows(folder: Path, rounds: int) -> list[Row]:
    """Smallest against largest count at batch 32: the ratio of times, and its share of the ratio of FLOPs."""
    engine = _engine(folder, slots=CONCURRENCY)
    ends = COUNTS[0], COUNTS[-1]
    taken: dict[int, list[float]] = {count: [] for count in ends}
    # The first round warms up; a spread needs two more.
    for number in range(1 + max(2, rounds)):
        for count in random.Random(number).sample(ends, 2):
            taken[count].append(await _all_at_once(engine, [count] * CONCURRENCY, SHORT, number))
    await engine.close()
    small, large = (taken[count][1:] for count in ends)
    ratios = [most / least for least, most in zip(small, large, strict=True)]
    flops = _answer_flops(ends[1]) / _answer_flops(ends[0])
    setting = f"{ends[1]} against {ends[0]} tokens, batch {CONCURRENCY}, 256 patches, width 256, {SHORT} new tokens"
    return [
        Row(name="answer, time ratio", setting=f"{setting}; FLOPs {flops:.2f}×", unit="ratio", **spread(ratios)),
        Row(
            name="answer, time ratio ÷ FLOPs ratio",
            setting=setting,
            unit="ratio",
            at_least=LEAST_OF_FLOPS,
            **spread([ratio / flops for ratio in ratios]),
        ),
    ]


async def batching_rows(folder: Path, rounds: int) -> list[Row]:
    """Requests/s of 32 at once, counts mixed: batched by count against one after another."""
    wanted = list(COUNTS) * (CONCURRENCY // len(COUNTS))
    gains: list[float] = []
    engines = {slots: _engine(folder, slots=slots) for slots in (1, CONCURRENCY)}
    # The first round warms up; a spread needs two more.
    for number in range(1 + max(2, rounds)):
        taken = {}
        for slots in random.Random(number).sample(sorted(engines), 2):
            taken[slots] = await _all_at_once(engines[slots], wanted, LONG, number)
        gains.append(taken[1] / taken[CONCURRENCY])
    for engine in engines.values():
        await engine.close()
    setting = f"{CONCURRENCY} at once, counts {', '.join(map(str, COUNTS))}, {LONG} new tokens, 256 patches, width 256"
    return [
        Row(
            name="batched by count ÷ unbatched, requests/s",
            setting=setting,
            unit="ratio",
            at_least=LEAST_BATCHING,
            **spread(gains[1:]),
        )
    ]


async def governor_rows(folder: Path, seconds: float, loads: Sequence[float]) -> list[Row]:
    """Open-loop arrivals at shares of capacity × R, bending and not: accepted over target, refused, quality served.

    R is the ratio of times of the largest and the smallest count in closed batches of this run. Last, how long the
    full count takes to come back once the load is gone.
    """
    modes = ("on", "off")
    engines = {mode: _engine(folder, slots=CONCURRENCY, governor=mode, max_queue=256) for mode in modes}
    for engine in engines.values():
        await engine.calibrate()
    capacity, ratio = await _capacity(engines["off"])
    rows: list[Row] = []
    for load in loads:
        rate = load * ratio * capacity
        for mode, engine in engines.items():
            found = await _open_loop(engine, rate, seconds, seed=0)
            setting = f"{load:g} of capacity × R (R = {ratio:.2f}, {rate:.1f} requests/s), governor {mode}"
            rows.append(_late_row(found, 1e-3 * engine.settings.target_ms, setting, mode))
    backs = [await _seconds_until_full(engines["on"], 0.8 * ratio * capacity) for _ in range(3)]
    rows.append(Row(name="full count back after a drop", setting="0.8 to 0", unit="s", at_most=2.0, **spread(backs)))
    for engine in engines.values():
        await engine.close()
    return rows


def _late_row(found: Sequence[Done | Busy], target_s: float, setting: str, mode: str) -> Row:
    accepted = [item for item in found if isinstance(item, Done)]
    late = sum(done.latency_ms["total"] > 1e3 * target_s for done in accepted) / max(1, len(accepted))
    quality = sum(done.expected_quality or 0.0 for done in accepted) / max(1, len(accepted))
    refused = 1 - len(accepted) / max(1, len(found))
    setting = f"{setting}, target {target_s:g} s; refused {refused:.1%}, mean quality {quality:.3f}"
    at_most = MOST_LATE if mode == "on" else None
    return single("accepted over target", setting, late, "share", at_most, num_samples=len(accepted))


async def _seconds_until_full(engine: Engine, rate: float) -> float:
    """From the end of a load that bends until requests, one every tenth of a second, get the largest count again."""
    await _open_loop(engine, rate, 5.0, seed=1)
    began, last = time.monotonic(), 0.0
    for number in range(40):
        done = await _outcome(engine, _request(number, None, SHORT, 2, may_bend=True))
        if isinstance(done, Busy) or done.visual_tokens != (COUNTS[-1],):
            last = time.monotonic() - began
        await asyncio.sleep(0.1)
    return last


async def _capacity(engine: Engine) -> tuple[float, float]:
    """Requests/s of closed batches at the largest count, and how many times that the smallest count gives."""
    ends = COUNTS[0], COUNTS[-1]
    took = {count: [] for count in ends}
    for seed in range(3):
        for count in ends:
            took[count].append(await _all_at_once(engine, [count] * CONCURRENCY, SHORT, seed))
    small_s, large_s = (sorted(took[count])[1] for count in ends)
    return CONCURRENCY / large_s, large_s / small_s


async def _open_loop(engine: Engine, rate: float, seconds: float, seed: int) -> list[Done | Busy]:
    """Poisson arrivals of consenting requests, whatever becomes of them."""
    draws = random.Random(seed)
    sent: list[asyncio.Task[Done | Busy]] = []
    began, at, number = time.monotonic(), 0.0, 0
    while (at := at + draws.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        request = _request(number, None, SHORT, seed, may_bend=True)
        sent.append(asyncio.create_task(_outcome(engine, request)))
        number += 1
    return list(await asyncio.gather(*sent))


async def _outcome(engine: Engine, request: ServeRequest) -> Done | Busy:
    try:
        return await _answered(engine, request)
    except Busy as busy:
        return busy


async def _all_at_once(engine: Engine, counts: Sequence[int], new_tokens: int, seed: int) -> float:
    """Seconds from sending a request for each count to the last answer."""
    requests = [_request(number, count, new_tokens, seed) for number, count in enumerate(counts)]
    began = time.perf_counter()
    done = await asyncio.gather(*(_answered(engine, request) for request in requests))
    took = time.perf_counter() - began
    if any(one.completion_tokens != new_tokens for one in done):
        raise WorkFailed(f"an answer of the bench model ended before its {new_tokens} tokens")
    return took


async def _answered(engine: Engine, request: ServeRequest) -> Done:
    async for item in engine.generate(request):
        if isinstance(item, Done):
            return item
    raise WorkFailed(f"request {request.id} had no end")


def _request(number: int, count: int | None, new_tokens: int, seed: int, **terms: Any) -> ServeRequest:
    return ServeRequest(
        id=f"{seed}/{number}",
        turns=(Turn("user", (0, "what is b3")),),
        images=(noise(1000 * seed + number),),
        asks=(Ask(count),),
        sampling=Sampling(new_tokens),
        **terms,
    )


def _engine(folder: Path, **settings: Any) -> Engine:
    plain = {"threads": 1, "governor": "off", "cache_mib": 0, "replay_share": 0.0}
    return Engine.load(folder, EngineSettings(**{**plain, **settings}))


def _answer_flops(count: int) -> float:
    """FLOPs of a short answer as served: four tokens of text, the visual ones, and three that are fed back."""
    config = configuration()
    return answer_flops(workload(config.workload).cost(config), count)

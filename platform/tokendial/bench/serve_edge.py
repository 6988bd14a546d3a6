"""What the endpoint on Ray Serve adds to its model, against its own floor and against uvicorn; and a tenfold overload.

All targets run at once on this machine and take turns block by block. Images are all different.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
from ray import serve

from tokendial.bench.open_loop import Client, Sample, chat, closed, noise, opened
from tokendial.bench.records import Row, single, spread
from tokendial.failures import WorkFailed
from tokendial.model_folder import read_card
from tokendial.serve.application import QUIET, Endpoint, connect, free_port
from tokendial.serve.keep import Keeper
from tokendial.serve.options import serve_settings
from tokendial.serve.source import locate

CHAT = "/v1/chat/completions"
EMPTY = "/empty"
ALONE, CROWD = 25, 480
CONCURRENCY = 32
MOST_ADDED_MS = 3.0
LEAST_OF_ALLOWED = 0.9
LEAST_GOODPUT = 0.8
MOST_REFUSAL_MS = 100.0
MOST_GROWTH_MIB = 64.0
START_S = 120.0


@dataclass(frozen=True)
class Targets:
    """Addresses: the endpoint on Ray Serve, an empty handler on the same proxy, and the peer under uvicorn."""

    endpoint: str
    peer: str
    model: str


@contextmanager
def targets(folder: Path, engine: Mapping[str, Any]) -> Iterator[Targets]:
    """Both endpoints over the same folder and engine settings, with one CPU thread each for the model."""
    overrides = ["port=0", "trace_share=0", *(f"engine.{key}={value}" for key, value in engine.items())]
    settings = serve_settings([*overrides, "engine.threads=1"])
    port = free_port("127.0.0.1", 0)
    command = [sys.executable, "-m", "tokendial.bench.serve_peer", str(folder), str(port)]
    peer = subprocess.Popen([*command, settings.engine.model_dump_json()])
    endpoint = Endpoint(settings, None, connect())
    keeper = Keeper(endpoint, None, lambda line: None)
    try:
        keeper.open(locate(str(folder), "", None)[0])
        empty = serve.deployment(num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})(Empty)
        serve.run(empty.bind(), name="empty", route_prefix=EMPTY, logging_config=QUIET)
        _wait_for(port, peer)
        yield Targets(endpoint.url, f"http://127.0.0.1:{port}", read_card(folder).workload)
    finally:
        peer.terminate()
        peer.wait()
        serve.delete("empty")
        keeper.close()


class Empty:
    """Ray Serve's own floor: a handler that does nothing."""

    async def __call__(self, _request: Any) -> str:
        return ""


def edge_rows(folder: Path, rounds: int) -> list[Row]:
    """Added time at concurrency 1 and requests/s at concurrency 32."""
    with targets(folder, {"governor": "off"}) as places:
        return asyncio.run(_edge(places, rounds))


async def _edge(places: Targets, rounds: int) -> list[Row]:
    alone: dict[str, list[float]] = {name: [] for name in ("ray", "uvicorn", "ray empty", "uvicorn empty")}
    crowd: dict[str, list[float]] = {name: [] for name in ("ray", "uvicorn", "ray empty", "uvicorn empty")}
    async with Client(places.endpoint) as ours, Client(places.peer) as peer:
        paths = {
            "ray": (ours, CHAT),
            "uvicorn": (peer, CHAT),
            "ray empty": (ours, EMPTY),
            "uvicorn empty": (peer, "/healthz"),
        }
        for number in range(rounds + 1):
            for name, (client, path) in paths.items():
                few = _bodies(path, places.model, ALONE, 10_000 * number)
                many = _bodies(path, places.model, CROWD, 10_000 * number + 5_000)
                samples, _ = await closed(client, path, few, 1)
                several, rate = await closed(client, path, many, CONCURRENCY)
                _all_answered(name, [*samples, *several])
                # The first round warms everything up.
                if number:
                    alone[name].append(median(sample.latency_ms for sample in samples))
                    crowd[name].append(rate)
    return [*_added(alone), *_rates(crowd)]


def _bodies(path: str, model: str, number: int, seed: int) -> list[bytes | None]:
    if path != CHAT:
        return [None] * number
    return [chat(noise(seed + each), model, 2) for each in range(number)]


def _added(alone: Mapping[str, Sequence[float]]) -> list[Row]:
    """What Ray adds with the model in it, over what it adds to a handler that does nothing."""
    rows = list(zip(*(alone[name] for name in ("ray", "uvicorn", "ray empty", "uvicorn empty")), strict=True))
    over = [(ray - plain) - (empty - nothing) for ray, plain, empty, nothing in rows]
    setting = "p50, 1 client; (Ray Serve − uvicorn) with the model, less the same with an empty handler"
    names = {"ray": "endpoint on Ray Serve", "uvicorn": "endpoint on uvicorn"}
    names |= {"ray empty": "empty handler on Ray Serve", "uvicorn empty": "empty handler on uvicorn"}
    return [
        Row(name="added over the floor", setting=setting, unit="ms", at_most=MOST_ADDED_MS, **spread(over)),
        *(Row(name=names[name], setting="p50, 1 client", unit="ms", **spread(alone[name])) for name in names),
    ]


def _rates(crowd: Mapping[str, Sequence[float]]) -> list[Row]:
    """Against what the empty handler's time and the model's allow where they follow one another."""
    together = [
        ray / (1 / (1 / empty + 1 / plain))
        for ray, empty, plain in zip(crowd["ray"], crowd["ray empty"], crowd["uvicorn"], strict=True)
    ]
    ratio = [ray / plain for ray, plain in zip(crowd["ray"], crowd["uvicorn"], strict=True)]
    setting = f"{CONCURRENCY} clients"
    allowed = f"{setting}; of 1 ÷ (1 ÷ empty handler on Ray Serve + 1 ÷ endpoint on uvicorn)"
    return [
        Row(name="requests/s, share of the allowed", setting=allowed, unit="ratio", at_least=LEAST_OF_ALLOWED,
            **spread(together)),
        Row(name="requests/s against uvicorn", setting=setting, unit="ratio", **spread(ratio)),
        *(Row(name=f"requests/s, {name}", setting=setting, unit="/s", **spread(crowd[name])) for name in crowd),
    ]  # fmt: skip


def overload_rows(folder: Path, seconds: float) -> list[Row]:
    """Ten times what the endpoint can answer: what is still answered, how fast the rest is refused, and memory."""
    with targets(folder, {"governor": "off", "cache_mib": 0, "max_queue": 64}) as places:
        return asyncio.run(_overload(places, seconds))


async def _overload(places: Targets, seconds: float) -> list[Row]:
    async with Client(places.endpoint) as client:
        bodies = [chat(noise(number), places.model, 4) for number in range(2 * CROWD)]
        await closed(client, CHAT, bodies[:CONCURRENCY], CONCURRENCY)
        samples, capacity = await closed(client, CHAT, bodies[CROWD:], CONCURRENCY)
        _all_answered("endpoint", samples)
        before = _memory_mib()
        began = time.monotonic()
        found = await opened(client, CHAT, 10 * capacity, seconds, lambda number: bodies[number % len(bodies)])
        took_s = time.monotonic() - began
        growth = _memory_mib() - before
    answered = [sample for sample in found if sample.status == 200]
    refused = [sample.latency_ms for sample in found if sample.status == 429]
    known = (len(answered) + len(refused)) / len(found)
    p99 = quantiles(refused, n=100)[98] if len(refused) > 1 else 0.0
    goodput = len(answered) / took_s / capacity
    setting = f"open loop at 10 × {capacity:.1f} requests/s for {seconds:g} s, {len(found)} sent"
    return [
        single("goodput, share of capacity", setting, goodput, "ratio", at_least=LEAST_GOODPUT),
        single("refusals, p99", setting, p99, "ms", at_most=MOST_REFUSAL_MS),
        single("answered or refused as busy", setting, known, "share", at_least=1.0),
        single("memory growth of the cluster", setting, max(0.0, growth), "MiB", at_most=MOST_GROWTH_MIB),
    ]


def _memory_mib() -> float:
    """Resident memory of every process under this one."""
    processes = psutil.Process().children(recursive=True)
    return sum(process.memory_info().rss for process in processes if process.is_running()) / 2**20


def _all_answered(name: str, samples: Sequence[Sample]) -> None:
    bad = sorted({sample.status for sample in samples} - {200})
    if bad:
        raise WorkFailed(f"{name} answered with {bad}; nothing is measured on a target that fails")


def _wait_for(port: int, peer: subprocess.Popen[bytes]) -> None:
    import socket

    deadline = time.monotonic() + START_S
    while peer.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.2)
    raise WorkFailed("the endpoint under uvicorn did not start")

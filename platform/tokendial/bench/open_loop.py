"""A load generator for HTTP endpoints: closed loops of so many clients, and open loops of Poisson arrivals.

An open loop sends when a request is due, whether or not earlier ones are answered, so a slow endpoint cannot slow its
own load down and hide what it does to those who wait.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Sample:
    """One request: HTTP status (0: the connection broke), milliseconds, and the answer's usage where there is one."""

    status: int
    latency_ms: float
    usage: Mapping[str, Any]


class Client:
    """Keep-alive connections to one endpoint."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, path: str, body: bytes | None) -> Sample:
        """GET without a body, POST with one."""
        began = time.perf_counter()
        try:
            headers = {"content-type": "application/json"}
            async with self._session.request(
                "GET" if body is None else "POST", self._url + path, data=body, headers=headers
            ) as answer:
                content = await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError):
            status, content = 0, b""
        latency_ms = 1e3 * (time.perf_counter() - began)
        whole = json.loads(content) if status == 200 and body is not None else {}
        return Sample(status, latency_ms, whole.get("usage") or {})


async def closed(client: Client, path: str, bodies: Sequence[bytes | None], clients: int) -> tuple[list[Sample], float]:
    """Every body once, `clients` at a time; the samples, and requests/s."""
    waiting = iter(bodies)
    found: list[Sample] = []

    async def work() -> None:
        for body in waiting:
            found.append(await client.send(path, body))

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    return found, len(found) / (time.perf_counter() - began)


async def opened(client: Client, path: str, rate: float, seconds: float, body: Any) -> list[Sample]:
    """Poisson arrivals at `rate` a second; `body(number)` makes each request's."""
    draws = random.Random(0)
    sent: list[asyncio.Task[Sample]] = []
    began, at = time.monotonic(), 0.0
    while (at := at + draws.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        sent.append(asyncio.create_task(client.send(path, body(len(sent)))))
    return list(await asyncio.gather(*sent))


def chat(image: bytes, model: str, new_tokens: int) -> bytes:
    """The body of a chat completion about one PNG."""
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is b3"}]
    message = {"role": "user", "content": content}
    return json.dumps({"model": model, "messages": [message], "max_tokens": new_tokens}).encode()


def noise(seed: int) -> bytes:
    """A PNG of 48 × 48 pixels of noise: no two are alike, so nothing is answered from a cache."""
    from PIL import Image

    file = io.BytesIO()
    Image.frombytes("RGB", (48, 48), random.Random(seed).randbytes(3 * 48 * 48)).save(file, "PNG")
    return file.getvalue()

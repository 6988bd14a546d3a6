"""An endpoint on a free loopback port over a scripted backend, whose answers are a function of the request."""

import asyncio
import base64
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import uvicorn
from tokendial.failures import WorkFailed
from tokendial.model_folder import Rung
from tokendial.serve.backend import Lost, Make, Served, Whole
from tokendial.serve.request import BadRequest, Busy, BusyCause, Chunk, Done, ServeRequest

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
COUNTS = (4, 16, 64)
MOST_NEW_TOKENS = 1024


def image(detail: str | None = None, content: bytes = PNG, kind: str = "image/png") -> dict[str, Any]:
    url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url} | ({"detail": detail} if detail else {})}


def chat(*parts: dict[str, Any], text: str = "what is it", **fields: Any) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": text}]
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **fields}


class ScriptedBackend:
    """Says the question's words back; the words that `stream` looks for do as they say."""

    def __init__(self) -> None:
        self.requests: list[ServeRequest] = []
        self.cancelled = 0
        self.asleep = threading.Event()

    def served(self) -> Served:
        rungs = tuple(
            Rung(count=k, quality=k / 64, quality_ci=(0, 1), cost_flops=k, latency_ms=float(k)) for k in COUNTS
        )
        return Served("scripted", "7", "accuracy", 1, rungs)

    async def answer(self, make: Make) -> Whole:
        pieces, done = [], None
        async for item in self.stream(make):
            if isinstance(item, Done):
                done = item
            else:
                pieces.append(item.text)
        assert done is not None
        return Whole("".join(pieces), done)

    async def stream(self, make: Make) -> AsyncIterator[Chunk | Done]:
        request = make(self.served())
        self.requests.append(request)
        words = " ".join(part for part in request.turns[-1].parts if isinstance(part, str)).split()
        counts = tuple(ask.count or COUNTS[-1] for ask in request.asks)
        if bad := [count for count in counts if count not in COUNTS]:
            raise BadRequest("visual_tokens", f"{bad[0]} visual tokens are not admissible; {COUNTS} are")
        if request.sampling.max_new_tokens > MOST_NEW_TOKENS:
            raise BadRequest("max_completion_tokens", f"1 to {MOST_NEW_TOKENS} new tokens are allowed")
        if "floor" in words:
            raise BadRequest("slo.min_quality", f"min_quality {request.min_quality} is not reached")
        if "full" in words:
            raise Busy("no room", 2.5, full=True)
        causes: tuple[BusyCause, ...] = get_args(BusyCause)
        for cause in causes:
            if cause in words:
                raise Busy("no room", 2.5, cause=cause)
        if "bad" in words:
            raise BadRequest("messages", "a bad question")
        reason = "asked" if any(ask.count for ask in request.asks) else "largest"
        for word in words:
            if word == "lost":
                raise Lost
            if word == "gone":
                raise ConnectionError("no engine replica stayed alive")
            if word == "broken":
                raise WorkFailed("the model failed")
            if word == "slow":
                try:
                    self.asleep.set()
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
            yield Chunk(word + " ", counts, 0.75, reason)
        stages = {"queue": 0.1, "prefill": 0.2, "total": 0.3}
        yield Done("stop", 9, len(words), counts, counts, 0.75, reason, stages)

    async def load(self) -> Mapping[str, Mapping[str, Any]]:
        latency_ms = {str(count): float(count) for count in COUNTS}
        plain = {"queued": 0, "running": 1, "wanted_tokens": 64, "demand_share": 0.5, "crowded": True}
        governor = {"level": 1, "cap": 16, "lift": 0.25, "barred": (4,)}
        return {"a": {**plain, **governor, "agreement": {"4": 0.9}, "latency_ms": latency_ms, "start_s": {"load": 1.5}}}

    def examples(self) -> list[dict[str, str]]:
        return [{"image": image()["image_url"]["url"], "question": "what is it"}]


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The base URL of an ASGI application that is served while the context is open."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def post(url: str, body: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any, Mapping[str, str]]:
    """Status, parsed body and headers; `body` is sent as it is where it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, content, {"content-type": "application/json", **headers})
    return _sent(request)


def get(url: str, path: str, **headers: str) -> tuple[int, Any, Mapping[str, str]]:
    return _sent(urllib.request.Request(url + path, headers=headers))


def _sent(request: urllib.request.Request) -> tuple[int, Any, Mapping[str, str]]:
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, _parsed(answer.read()), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parsed(error.read()), dict(error.headers)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError:
        return content.decode()

"""ASGI limits in front of the endpoint: who asks, how often, how large and how slow, decided before anything else.

A body is read here, whole, under a cap of bytes and of seconds, so a slow or endless one never reaches the engine; the
number of bodies being read, and of requests in work with their bytes, is bounded too.
"""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from tokendial.serve.keys import Key, KeyStore
from tokendial.serve.proxy import CARRIED, REFUSED
from tokendial.serve.rate import Bucket, take
from tokendial.serve.schema import problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/"})
# Answered however many requests are in work: a probe that fails under load would have the busy process restarted.
WATCHED_PATHS = OPEN_PATHS | {"/metrics"}


@dataclass(frozen=True)
class Caps:
    """Bounds of one endpoint process."""

    max_body_bytes: int = 32 * 2**20
    max_body_s: float = 10.0
    max_reading: int = 64
    max_requests: int = 1024
    max_held_bytes: int = 512 * 2**20
    max_header_bytes: int = 16_384


class Refused(Exception):
    """An answer that ends a request here."""

    def __init__(self, status: int, cause: str, message: str, param: str | None = None, retry_s: float | None = None):
        super().__init__(message)
        self.status, self.cause, self.param, self.retry_s = status, cause, param, retry_s


class Gate:
    """The ASGI application behind the limits. `scope["state"]` has the caller's `key`, None where none is needed, and
    `hold`, which counts further bytes as held until the request ends, or raises Refused; fewer than 0 are let go.

    Args:
        keys: the store; without one everybody may ask.
        share: this process's part of a key's rate, 1 / number of endpoint processes.
        refused: told the cause of every refusal.
    """

    def __init__(
        self, app: App, caps: Caps, keys: KeyStore | None, share: float, refused: Callable[[str, int], None]
    ) -> None:
        self._app, self._caps, self._keys, self._share, self._refused = app, caps, keys, share, refused
        self._buckets: dict[str, Bucket] = {}
        self._reading = self._working = self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        self._working += 1
        for _ in range(scope.pop(REFUSED, 0)):
            self._refused("busy", 429)
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._held_bytes + size > self._caps.max_held_bytes:
                message = "the server holds as many bytes of requests as it takes; try again"
                raise Refused(429, "busy", message, retry_s=1.0)
            self._held_bytes += size
            held += size

        try:
            state = scope.setdefault("state", {})
            state["key"], state["hold"] = self._admit(scope), hold
            hold(announced := self._announced(scope))
            body = await self._body(scope, receive)
            hold(len(body) - announced)
        except Refused as error:
            self._refused(error.cause, error.status)
            return await _answer(error, send)
        else:
            return await self._app(scope, _replay(body, receive), send)
        finally:
            self._working -= 1
            self._held_bytes -= held

    def _admit(self, scope: Scope) -> Key | None:
        if self._working > self._caps.max_requests and scope["path"] not in WATCHED_PATHS:
            raise Refused(429, "busy", "the server has as many requests as it takes; try again", retry_s=1.0)
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > self._caps.max_header_bytes:
            raise Refused(431, "size", f"the headers have more than {self._caps.max_header_bytes} bytes")
        if self._keys is None or scope["path"] in OPEN_PATHS:
            return None
        key = self._keys.find(bearer(headers))
        if key is None:
            raise Refused(401, "key", "a valid API key is needed: Authorization: Bearer KEY")
        if key.rate_per_s is not None and scope["method"] == "POST":
            rate = key.rate_per_s * self._share
            self._buckets[key.name], wait_s = take(self._buckets.get(key.name), rate, time.monotonic())
            if wait_s:
                raise Refused(429, "rate", f"key {key.name!r} has {key.rate_per_s:g} requests a second", retry_s=wait_s)
        return key

    def _announced(self, scope: Scope) -> int:
        """Bytes of the body by what it says of itself, or the cap where it says nothing."""
        if scope["method"] in ("GET", "HEAD"):
            return 0
        cap = self._caps.max_body_bytes
        said = next((value for name, value in scope["headers"] if name == b"content-length"), str(cap).encode())
        digits = said.lstrip(b"0") or b"0"
        if not said.isdigit() or len(digits) > 20 or int(digits) > cap:
            raise Refused(413, "size", f"the body has more than {cap} bytes", "body")
        return int(digits)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        if scope["method"] in ("GET", "HEAD"):
            return b""
        if (carried := scope.pop(CARRIED, None)) is not None:
            return carried
        if self._reading >= self._caps.max_reading:
            raise Refused(429, "busy", "the server is reading as many bodies as it takes; try again", retry_s=1.0)
        self._reading += 1
        try:
            async with asyncio.timeout(self._caps.max_body_s):
                return await _read(receive, self._caps.max_body_bytes)
        except TimeoutError:
            raise Refused(408, "slow", f"the body did not arrive within {self._caps.max_body_s:g} s", "body") from None
        finally:
            self._reading -= 1


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The secret of an Authorization header; empty where there is none."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, secret = value.decode("latin-1").partition(" ")
            return secret.strip() if scheme.lower() == "bearer" else ""
    return ""


async def _read(receive: Receive, cap: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "slow", "the client left before its body had arrived", "body")
        piece = message.get("body", b"")
        size += len(piece)
        if size > cap:
            raise Refused(413, "size", f"the body has more than {cap} bytes", "body")
        pieces.append(piece)
        if not message.get("more_body"):
            return b"".join(pieces)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body at once, then whatever comes: the client's leaving."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(error: Refused, send: Send) -> None:
    content = json.dumps(problem(error.status, str(error), error.param, error.cause)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if error.retry_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_s))).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (408, 413, 431):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})

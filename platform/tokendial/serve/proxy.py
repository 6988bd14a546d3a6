"""What runs in Ray Serve's HTTP proxy, where a request costs least: bodies go ahead, and a crowd is turned away.

Serve hands a replica the head of a request and lets it call back for the body, which costs as much as the whole of an
empty request. Here a body that comes at once is put into the ASGI scope, where `limits.Gate` looks first.
"""

import asyncio
import time
from collections import deque
from contextlib import suppress
from copy import deepcopy

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokendial.serve import heads

CARRIED, REFUSED = "tokendial.body", "tokendial.refused"
MOST_BYTES = 2**20
PATIENCE_S = 0.05
# A refusal with this header: nobody else would have had room either. For so long that is not asked again.
PATH, FULL = "/v1/chat/completions", "x-tokendial-full"
HOLD_S = 0.05


def middlewares() -> list[Middleware]:
    """What `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names; each proxy calls it as it starts, before it listens."""
    heads.install()
    return [Middleware(BodyAhead), Middleware(Crowd)]


class BodyAhead:
    """An ASGI application whose requests carry their bodies, where these are small and there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read: deque[Message] = deque()
        if scope["type"] == "http" and 0 < _length(scope) <= MOST_BYTES:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    while not read or read[-1].get("more_body"):
                        read.append(await receive())
        if read and read[-1].get("more_body") is False:
            scope[CARRIED] = b"".join(message.get("body", b"") for message in read)
            read.clear()

        async def rest() -> Message:
            return read.popleft() if read else await receive()

        await self._app(scope, rest, send)


class Crowd:
    """An ASGI application that, once it said that it is full, says so for a moment without being asked.

    The next request that comes through tells it how many it did not see, in the scope: it keeps the count.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._refusal: list[Message] = []
        self._until_s = 0.0
        self._unseen = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", PATH):
            await self._app(scope, receive, send)
            return
        if time.monotonic() < self._until_s:
            self._unseen += 1
            for message in self._refusal:
                # Whoever sends it may add to its headers.
                await send(deepcopy(message))
            return
        scope[REFUSED], self._unseen = self._unseen, 0
        said: list[Message] = []

        async def heard(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
                if any(name == FULL.encode() for name, _ in headers):
                    said.append({**message, "headers": headers})
            elif said:
                said.append(message)
                if not message.get("more_body"):
                    self._refusal, self._until_s = said, time.monotonic() + HOLD_S
            await send(message)

        await self._app(scope, receive, heard)


def _length(scope: Scope) -> int:
    """What a request says of its body's length; 0 where it says nothing that can be relied on."""
    said = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(said[:20]) if said.isdigit() else 0

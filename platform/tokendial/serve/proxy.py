"""What runs in Ray Serve's HTTP proxy: a body that comes at once travels with the head of its request.

Serve hands a replica the head alone and lets it call back for the body, which costs as much as the whole of an empty
request. Here the body is put into the ASGI scope, where `limits.Gate` looks first; large or slow ones go Serve's way.
"""

import asyncio
from collections import deque
from contextlib import suppress

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CARRIED = "tokendial.body"
MOST_BYTES = 2**20
PATIENCE_S = 0.05


def middlewares() -> list[Middleware]:
    """What `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names; each proxy calls it as it starts."""
    return [Middleware(BodyAhead)]


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


def _length(scope: Scope) -> int:
    """What a request says of its body's length; 0 where it says nothing that can be relied on."""
    said = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(said[:20]) if said.isdigit() else 0

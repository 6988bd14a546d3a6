"""Sending an answer as it comes, and ending its work at once when the client leaves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokendial.serve import answer as shape
from tokendial.serve.backend import Lost
from tokendial.serve.request import Chunk, Done
from tokendial.serve.schema import problem

T = TypeVar("T")
CLIENT_LEFT = 499


class Left(Exception):
    """The client went away before its answer."""


async def unless_left(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` gives; where the client leaves first, `work` is cancelled and Left raised."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Left
    finally:
        for each in (task, gone):
            each.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task, gone})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events. A stream that breaks ends with an error event and no `[DONE]`, never as if it were whole.

    Args:
        head: the first item, which was waited for before any status was sent.
        ended: told the whole text and the end of an answer that came to its end.
        closed: told the status that the stream comes to as a whole: 200, 499 or 503, and the pieces that were sent. A
            fault is raised instead.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        head: Chunk | Done,
        items: AsyncIterator[Chunk | Done],
        envelope: shape.Envelope,
        with_usage: bool,
        ended: Callable[[str, Done], None],
        closed: Callable[[int, int], None],
    ) -> None:
        told = {**shape.headers(envelope.served, head), "x-request-id": envelope.id.removeprefix("chatcmpl-")}
        super().__init__(headers={**told, "cache-control": "no-store"})
        del self.headers["content-length"]
        self._head, self._items, self._envelope = head, items, envelope
        self._with_usage, self._ended, self._closed = with_usage, ended, closed
        # What it comes to, should it end now; None: a fault, which is counted where all are.
        self._code: int | None = CLIENT_LEFT
        self._pieces: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            with suppress(Left):
                await unless_left(receive, self._send_all(send))
        # Serve cancels this where the client leaves.
        finally:
            if self._code is not None:
                self._closed(self._code, len(self._pieces))

    async def _send_all(self, send: Send) -> None:
        async def out(content: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": content, "more_body": more})

        item: Chunk | Done = self._head
        opening = shape.first(self._envelope, item)
        try:
            while isinstance(item, Chunk):
                self._pieces.append(item.text)
                await out(opening + shape.piece(self._envelope, item))
                opening = b""
                item = await anext(self._items)
            self._ended("".join(self._pieces), item)
            self._code = 200
            await out(opening + shape.last(self._envelope, item, self._with_usage), more=False)
        except (Lost, StopAsyncIteration):
            told = "the engine was lost; what was sent is not the whole answer"
            self._code = 503
            await out(opening + shape.event(problem(503, told, None, "lost")), more=False)
        # Whatever the model raises: the status is sent, so the stream tells it; it is counted and logged as a fault.
        except Exception:
            told = "the server failed; what was sent is not the whole answer"
            self._code = None
            await out(opening + shape.event(problem(500, told, None, "failed")), more=False)
            raise
        finally:
            await self._items.aclose()  # type: ignore[attr-defined]

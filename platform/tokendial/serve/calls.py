"""Whole answers of one version over Ray Serve, several to a call: its price is much the same for one and for eight.

Nothing waits to be joined by others: what came while the last call was on its way goes together in the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from tokendial.serve.backend import Whole
from tokendial.serve.replica import Refusal
from tokendial.serve.request import ServeRequest

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

MOST = 8
# A call that no replica takes holds up what came after it for no longer.
WAIT_S = 0.01


class Asked:
    """A request on its way: `taken` once a replica has it or none will, `outcome` once it is answered or lost."""

    def __init__(self, request: ServeRequest) -> None:
        self.request = request
        self.taken = asyncio.Event()
        self.outcome: asyncio.Future[Whole | Refusal] = asyncio.get_running_loop().create_future()
        self.call: Call | None = None

    def settle(self, outcome: Whole | Refusal | BaseException) -> None:
        """Tell whoever still waits."""
        self.taken.set()
        if self.outcome.done():
            return
        if isinstance(outcome, BaseException):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


class Call:
    """One call for several requests."""

    def __init__(self, group: Sequence[Asked]) -> None:
        self.group = group
        self.task: asyncio.Task[None] | None = None


class Calls:
    """To the replicas behind a handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._answers = handle.options(method_name="answers", stream=True)
        self._waiting: deque[Asked] = deque()
        self._sending = False
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, request: ServeRequest) -> Asked:
        """Send a request with the next call; what it comes to is in what is returned."""
        asked = Asked(request)
        self._waiting.append(asked)
        if not self._sending:
            self._sending = True
            self._start(self._send())
        return asked

    def leave(self, asked: Asked) -> None:
        """Nobody waits for it any more: work on it ends, and so does a call that is for nobody else."""
        if asked.outcome.done():
            return
        asked.outcome.cancel()
        if asked.call is None:
            self._waiting.remove(asked)
        elif all(each.outcome.done() for each in asked.call.group):
            assert asked.call.task is not None
            asked.call.task.cancel()
        elif asked.taken.is_set():
            self._start(self._forget([asked]))

    async def _send(self) -> None:
        try:
            while self._waiting:
                call = Call([self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))])
                for asked in call.group:
                    asked.call = call
                call.task = self._start(self._run(call.group))
                with suppress(TimeoutError):
                    async with asyncio.timeout(WAIT_S):
                        await call.group[0].taken.wait()
        finally:
            self._sending = False

    async def _run(self, group: Sequence[Asked]) -> None:
        response = self._answers.remote([asked.request for asked in group])
        items = cast("DeploymentResponseGenerator[Any]", response)
        try:
            # Private to Ray, and all that tells when a replica has taken a call.
            await items._fetch_future_result_async()
            for asked in group:
                asked.taken.set()
            if left := [asked for asked in group if asked.outcome.cancelled()]:
                self._start(self._forget(left))
            async for outcomes in items:
                for number, outcome in outcomes:
                    group[number].settle(outcome)
            lost = ConnectionError("an engine replica ended a call without an answer")
            for asked in group:
                asked.settle(lost)
        # Whatever it is, it is told to each of those who asked.
        except Exception as error:
            for asked in group:
                asked.settle(error)
        finally:
            items.cancel()

    async def _forget(self, left: Sequence[Asked]) -> None:
        """Which replica it is that works on them, only Ray knows."""
        told = self._handle.broadcast("forget", [asked.request.id for asked in left])
        with suppress(Exception):
            await told.results_async(timeout_s=1.0, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

"""One engine replica: fetch, load, calibrate, then answer, and compile meanwhile. Refusals travel as data."""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from tokendial import environment
from tokendial.model_folder import read_card
from tokendial.serve import autoscaling
from tokendial.serve.backend import Served, Whole, ladder, snapshot, whole
from tokendial.serve.request import BadRequest, Busy, BusyCause, Chunk, Done, ServeRequest
from tokendial.serve.settings import EngineSettings
from tokendial.serve.source import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """BadRequest or Busy on its way to the endpoint; `full` holds for one replica."""

    kind: Literal["bad", "busy"]
    message: str
    field: str = ""
    retry_after_s: float = 0.0
    full: bool = False
    cause: BusyCause = "busy"
    replica: str = ""

    def error(self) -> BadRequest | Busy:
        """The exception that this stands for."""
        if self.kind == "bad":
            return BadRequest(self.field, self.message)
        return Busy(self.message, self.retry_after_s, self.full, self.cause)


class EngineReplica:
    """Ready once constructed: what cannot be fetched, loaded or calibrated raises here, before any traffic."""

    async def __init__(self, source: Source, settings: EngineSettings) -> None:
        import ray

        # Ray hides no GPU from a replica that asked for none.
        environment.apply(use_gpu=bool(ray.get_gpu_ids()))
        self._id = uuid.uuid4().hex[:8]
        self._start_s: dict[str, float] = {}
        with self._timed("import"):
            # Imports torch, which only replicas need.
            from tokendial.serve.engine import Engine
        with self._timed("fetch"):
            folder = await asyncio.to_thread(source.fetch)
        with self._timed("load"):
            self._engine = await asyncio.to_thread(Engine.load, folder, settings)
        with self._timed("calibrate"):
            await self._engine.calibrate()
        card = read_card(folder)
        created = int((folder / "tokendial.json").stat().st_mtime)
        registered = source.registered.partition("/")[0] if source.registered else None
        answer_tokens = min(card.config["evaluation"]["max_new_tokens"], settings.max_new_tokens)
        self._served = Served(
            source.name, source.version, card.metric, created, ladder(self._engine), registered, answer_tokens
        )
        self._asked: dict[str, asyncio.Task[Whole | Refusal | Exception]] = {}
        self._room = float(settings.slots * self._served.counts[-1])
        self._compiling = asyncio.create_task(self._compile())

    def served(self) -> Served:
        """The model, with this replica's own latencies."""
        return self._served

    async def answers(
        self, requests: Sequence[ServeRequest]
    ) -> AsyncIterator[list[tuple[int, Whole | Refusal | Exception]]]:
        """Whole answers as they end, each with the place of its request; those forgotten meanwhile are left out."""
        tasks = {asyncio.create_task(self._answer(request)): number for number, request in enumerate(requests)}
        self._asked |= {requests[number].id: task for task, number in tasks.items()}
        try:
            while tasks:
                ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                outcomes = [(tasks.pop(task), task) for task in ended]
                yield [(number, task.result()) for number, task in outcomes if not task.cancelled()]
        finally:
            for task in tasks:
                task.cancel()
            for request in requests:
                self._asked.pop(request.id, None)

    async def forget(self, ids: Sequence[str]) -> None:
        """Nobody waits any more for these of the requests that came together."""
        for each in ids:
            if each in self._asked:
                self._asked[each].cancel()

    async def stream(self, request: ServeRequest) -> AsyncIterator[Chunk | Done | Refusal]:
        """An answer in pieces; a refusal is its only item."""
        try:
            async with aclosing(self._engine.generate(request)) as items:
                async for item in items:
                    yield item
        except (BadRequest, Busy) as error:
            yield self._refusal(error)

    async def load(self) -> dict[str, Any]:
        """Load now, as plain data, and which process it is."""
        return {**snapshot(self._engine, self._start_s), "pid": os.getpid()}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy goes by."""
        load = self._engine.load_state()
        return autoscaling.report(load.wanted_tokens, load.demand_share, load.crowded, self._room)

    async def check_health(self) -> None:
        """Raise where the model's thread has ended, or the model fails at all or hangs: this replica is replaced."""
        if (fault := self._engine.fault()) is not None:
            raise RuntimeError(fault)

    async def _answer(self, request: ServeRequest) -> Whole | Refusal | Exception:
        try:
            return await whole(self._engine, request)
        except (BadRequest, Busy) as error:
            return self._refusal(error)
        # One answer that fails is no other's fault.
        except Exception as error:
            return error

    async def _compile(self) -> None:
        """Behind the first answers, which are eager; without it answers are as right, and slower."""
        try:
            with self._timed("compile"):
                await self._engine.compile()
        # What CUDA says of a capture, or that the engine was closed meanwhile.
        except RuntimeError:
            log.exception("the model's faster forms could not all be made; it serves on without them")

    def _refusal(self, error: BadRequest | Busy) -> Refusal:
        if isinstance(error, BadRequest):
            return Refusal("bad", str(error), field=error.field)
        return Refusal("busy", str(error), "", error.retry_after_s, error.full, error.cause, self._id)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._start_s[part] = time.monotonic() - began

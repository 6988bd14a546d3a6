"""What the endpoint needs of whatever answers: a model with a ladder, answers whole or in pieces, and its load.

`EngineBackend` is an engine in this process; `application` has the one over Ray Serve's replicas.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tokendial.model_folder import Rung
from tokendial.serve.request import Chunk, Done, ServeRequest

if TYPE_CHECKING:
    from tokendial.serve.engine import Engine


@dataclass(frozen=True)
class Served:
    """The model that takes requests: its name in requests and in the registry, version and ladder.

    `answer_tokens` is the longest answer that both its evaluation and its engine allow.
    """

    name: str
    version: str
    metric: str
    created: int
    rungs: tuple[Rung, ...]
    registered: str | None = None
    answer_tokens: int = 16

    @property
    def counts(self) -> Sequence[int]:
        return [rung.count for rung in self.rungs]


@dataclass(frozen=True)
class Whole:
    """A whole answer."""

    text: str
    done: Done


class Lost(Exception):
    """The replica died in the middle of an answer that had begun to be sent."""


Make = Callable[[Served], ServeRequest]


class Backend(Protocol):
    """Raises BadRequest or Busy from `answer`, and from `stream` before its first item.

    A request is made for the version that it is sent to, and once more where it has to be sent to another.
    """

    def served(self) -> Served:
        """The model that new requests go to."""
        ...

    async def answer(self, make: Make) -> Whole:
        """A whole answer; safe to begin again where a replica dies."""
        ...

    def stream(self, make: Make) -> AsyncIterator[Chunk | Done]:
        """An answer in pieces; closing it ends the work. Raises Lost where a replica dies after the first piece."""
        ...

    async def load(self) -> Mapping[str, Mapping[str, Any]]:
        """Each replica's load, by replica; empty where none answers."""
        ...

    def examples(self) -> Sequence[Mapping[str, str]]:
        """Images (data URIs) and questions to try the model with: `image`, `question`."""
        ...


class EngineBackend:
    """One engine in this process."""

    def __init__(self, engine: "Engine", name: str, version: str, metric: str, created: int) -> None:
        self._engine = engine
        self._served = Served(name, version, metric, created, ladder(engine))

    def served(self) -> Served:
        return self._served

    async def answer(self, make: Make) -> Whole:
        return await whole(self._engine, make(self._served))

    async def stream(self, make: Make) -> AsyncIterator[Chunk | Done]:
        async with aclosing(self._engine.generate(make(self._served))) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    async def load(self) -> Mapping[str, Mapping[str, Any]]:
        return {"0": snapshot(self._engine, {})}

    def examples(self) -> Sequence[Mapping[str, str]]:
        return []


def ladder(engine: "Engine") -> tuple[Rung, ...]:
    """The engine's rungs, counts ascending."""
    return tuple(sorted(engine.ladder(), key=lambda rung: rung.count))


def snapshot(engine: "Engine", start_s: Mapping[str, float]) -> dict[str, Any]:
    """A replica's load as plain data, with its own ladder's latencies and how long each part of its start took."""
    latency_ms = {str(rung.count): rung.latency_ms for rung in engine.ladder() if rung.latency_ms is not None}
    load = asdict(engine.load_state())
    load["agreement"] = {str(count): share for count, share in load["agreement"].items()}
    return {**load, "latency_ms": latency_ms, "start_s": dict(start_s)}


async def whole(engine: "Engine", request: ServeRequest) -> Whole:
    """An engine's answer, gathered."""
    pieces: list[str] = []
    async with aclosing(engine.generate(request)) as items:  # type: ignore[type-var]
        async for item in items:
            if isinstance(item, Done):
                return Whole("".join(pieces), item)
            pieces.append(item.text)
    raise RuntimeError(f"the engine ended request {request.id} without its end")

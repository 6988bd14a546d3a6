"""What runs in an endpoint process: the ASGI application, over the engine replicas of the version that serves."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from tokendial import environment
from tokendial.serve.backend import Lost, Make, Served, Whole
from tokendial.serve.calls import Calls
from tokendial.serve.exposition import Exposition
from tokendial.serve.ingress import Options, Trace, create_app
from tokendial.serve.keys import KeyStore
from tokendial.serve.proxy import HOLD_S
from tokendial.serve.replica import Refusal
from tokendial.serve.request import BadRequest, Busy, Chunk, Deadline, Done

TRIES = 5
RETRY_S = 0.2
LOAD_TIMEOUT_S = 2.0
LOAD_KEPT_S = 0.2
LOAD_FORGOTTEN_S = 10.0
# A replica that died, is being replaced, or never came: the answer may be begun again elsewhere.
GONE = (RayActorError, ReplicaUnavailableError)
CROWDED = (BackPressureError, DeploymentUnavailableError)


@dataclass(frozen=True)
class Traces:
    """Where a share of the answers is traced to."""

    uri: str
    experiment: str
    share: float


class ReplicaBackend:
    """Answers from the engine replicas of the version that takes traffic; a death costs a retry, not an answer."""

    def __init__(self, exposition: Exposition, most_replicas: int) -> None:
        self._series = exposition
        self._most_replicas = most_replicas
        self._full_s: dict[str, float] = {}
        self._handle: DeploymentHandle[Any] | None = None
        self._calls: Calls | None = None
        self._served: Served | None = None
        self._load: tuple[float, Mapping[str, Mapping[str, Any]]] = (0.0, {})
        self._asking: asyncio.Task[None] | None = None
        self._examples: Sequence[Mapping[str, str]] = ()

    async def follow(self, application: str, examples: Sequence[Mapping[str, str]]) -> None:
        """Send what comes from now on to this application; what has begun goes on where it is."""
        self._examples = examples
        handle = serve.get_app_handle(application)
        served = await handle.served.remote()
        self._handle, self._calls, self._served, self._load = handle, Calls(handle), served, (0.0, {})

    def served(self) -> Served:
        assert self._served is not None
        return self._served

    async def answer(self, make: Make) -> Whole:
        attempt = 0
        while True:
            attempt += 1
            calls, request = self._current(), make(self.served())
            asked = calls.ask(request)
            try:
                async with _by(request.deadline):
                    await asked.taken.wait()
                outcome = await asked.outcome
            except GONE as error:
                await self._again(attempt, error)
            except CROWDED as error:
                raise _no_room() from error
            else:
                if isinstance(outcome, Refusal):
                    raise self._error(outcome)
                return outcome
            finally:
                calls.leave(asked)

    async def stream(self, make: Make) -> AsyncGenerator[Chunk | Done]:
        """Begun again elsewhere where a replica is gone before the first piece."""
        for attempt in itertools.count(1):
            begun, engine, request = False, self._engine(), make(self.served())
            response = engine.options(method_name="stream", stream=True).remote(request)
            items = cast("DeploymentResponseGenerator[Any]", response)
            try:
                async with _by(request.deadline):
                    # Private to Ray, and all that tells when a replica has taken a request.
                    await items._fetch_future_result_async()
                async for item in items:
                    if isinstance(item, Refusal):
                        raise self._error(item)
                    begun = True
                    yield item
                return
            except GONE as error:
                if begun:
                    raise Lost from error
                await self._again(attempt, error)
            except CROWDED as error:
                raise _no_room() from error
            finally:
                items.cancel()

    async def load(self) -> Mapping[str, Mapping[str, Any]]:
        if time.monotonic() - self._load[0] > LOAD_KEPT_S:
            # Anybody may ask, as often as he likes: the replicas are asked once for all.
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask_load())
            await asyncio.shield(self._asking)
        return self._load[1]

    async def _ask_load(self) -> None:
        found = self._engine().broadcast("load")
        try:
            loads = await found.results_async(timeout_s=LOAD_TIMEOUT_S, return_exceptions=True)
            whole = [load for load in loads if isinstance(load, dict)]
            self._load = time.monotonic(), {str(number): load for number, load in enumerate(whole)}
        except TimeoutError:
            # One of many may hang; what was heard last holds for a while.
            if time.monotonic() - self._load[0] > LOAD_FORGOTTEN_S:
                self._load = self._load[0], {}
        except DeploymentUnavailableError:
            # No replica runs: that is known at once.
            self._load = time.monotonic(), {}

    def examples(self) -> Sequence[Mapping[str, str]]:
        return self._examples

    def _error(self, refusal: Refusal) -> BadRequest | Busy:
        """What a replica refused; that it is full is true of all once each has just said so."""
        error = refusal.error()
        if isinstance(error, Busy) and error.full:
            now = time.monotonic()
            self._full_s[refusal.replica] = now
            self._full_s = {replica: said for replica, said in self._full_s.items() if now - said < HOLD_S}
            error.full = len(self._full_s) >= self._most_replicas
        return error

    def _engine(self) -> DeploymentHandle[Any]:
        assert self._handle is not None
        return self._handle

    def _current(self) -> Calls:
        assert self._calls is not None
        return self._calls

    async def _again(self, attempt: int, error: Exception) -> None:
        if attempt >= TRIES:
            raise ConnectionError("no engine replica stayed alive") from error
        self._series.retried(self.served().name)
        await asyncio.sleep(RETRY_S * attempt)


def _no_room() -> Busy:
    return Busy("no engine has room", 1.0, full=True)


@asynccontextmanager
async def _by(deadline: Deadline | None) -> AsyncIterator[None]:
    """Busy where what is waited for has not come by then."""
    limit = asyncio.timeout(None if deadline is None else deadline.left_s)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise Busy("the request was not started in time", 1.0, cause="expired") from None


class EndpointReplica:
    """An endpoint process; `reconfigure` names the application that answers, without a restart."""

    def __init__(self, options: Options, keys: str | None, traces: Traces | None, most_replicas: int) -> None:
        environment.apply()
        self._trace: Trace | None = None
        if traces is not None:
            # Imports mlflow, which takes seconds.
            from tokendial.tracking.traces import Tracer

            self._trace = Tracer(traces.uri, traces.experiment, traces.share)
        self._options = options
        self._keys = None if keys is None else KeyStore(Path(keys))
        self._exposition = Exposition()
        self._backend = ReplicaBackend(self._exposition, most_replicas)

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Called by Serve before the first request and at every change of version."""
        await self._backend.follow(config["application"], config["examples"])

    async def count(self, outcome: str) -> None:
        """A version took traffic, or was refused before it had any."""
        self._exposition.changed(outcome)

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self._backend, self._options, self._keys, self._exposition, self._trace)

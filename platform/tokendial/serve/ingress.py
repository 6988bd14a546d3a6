"""The endpoint as an ASGI application over any backend: chat completions, models, health, load, metrics, and the page.

The same application runs in Ray Serve's ingress, under plain uvicorn, and in tests.
"""

import asyncio
import logging
import math
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from tokendial import __version__
from tokendial.serve import answer as shape
from tokendial.serve.backend import Backend, Served, Whole
from tokendial.serve.dial import Limits, Terms, asks, data_image, model_name, serve_request
from tokendial.serve.exposition import Exposition
from tokendial.serve.keys import Key, KeyStore, Usage
from tokendial.serve.limits import Caps, Gate, Refused
from tokendial.serve.openapi import CHAT, READ_RESPONSES, RESPONSES, document
from tokendial.serve.proxy import FULL
from tokendial.serve.remote import TIMEOUT_S, fetch
from tokendial.serve.request import BadRequest, Busy, Deadline, Done, ServeRequest
from tokendial.serve.schema import ChatRequest, ImageUrl, images, parse, problem
from tokendial.serve.streams import CLIENT_LEFT, EventStream, Left, unless_left

log = logging.getLogger(__name__)
T = TypeVar("T")
PAGE = Path(__file__).parent / "page" / "index.html"
# Bodies and images above this are read off the event loop, which they would stop for tens of milliseconds.
APART_BYTES = 2**18
USAGE_PERIOD_S = 1.0


@dataclass(frozen=True)
class Options:
    """How an endpoint process behaves; `terms` hold where no key is needed, `share` is its part of each key's rate."""

    limits: Limits = field(default_factory=Limits)
    caps: Caps = field(default_factory=Caps)
    terms: Terms = field(default_factory=Terms)
    image_hosts: frozenset[str] = frozenset()
    max_images: int = 4
    max_image_bytes: int = 20 * 2**20
    share: float = 1.0


Trace = Callable[[ServeRequest, Whole, Served, str], None]


def create_app(
    backend: Backend,
    options: Options,
    keys: KeyStore | None = None,
    exposition: Exposition | None = None,
    trace: Trace | None = None,
) -> Gate:
    """The endpoint; `keys` None lets everybody ask, `trace` is told every answer."""
    series = exposition or Exposition()
    endpoint = Endpoint(backend, options, keys, series, trace)
    app = FastAPI(
        title="tokendial", version=__version__, docs_url=None, redoc_url=None, lifespan=endpoint.lifespan,
        exception_handlers={HTTPException: _http_problem, Exception: endpoint.fault},
    )  # fmt: skip
    app.add_api_route("/v1/chat/completions", endpoint.chat, methods=["POST"], responses=RESPONSES, openapi_extra=CHAT)
    for path, route in {
        "/v1/models": endpoint.models, "/v1/models/{name}": endpoint.model, "/load": endpoint.load,
        "/examples": endpoint.examples,
        "/healthz": endpoint.healthz, "/readyz": endpoint.readyz, "/metrics": endpoint.metrics, "/": endpoint.page,
    }.items():  # fmt: skip
        app.add_api_route(path, route, methods=["GET"], responses=READ_RESPONSES)
        app.add_api_route(path, route, methods=["HEAD"], include_in_schema=False)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]

    def refused(cause: str, code: int) -> None:
        series.refused(cause)
        series.status("", "", code)

    return Gate(app, options.caps, keys, options.share, refused)


class NotServed(Exception):
    """Another model, or another version of it, is served."""


class Asking:
    """A chat completion that was read: a request for each version that it is sent to, the last of which is `served`."""

    def __init__(
        self, asked: ChatRequest, files: Mapping[str, bytes], terms: Terms, limits: Limits, deadline: Deadline
    ) -> None:
        self.asked, self.id = asked, uuid.uuid4().hex
        self._files, self._terms, self._limits, self._deadline = files, terms, limits, deadline
        self.served: Served
        self.request: ServeRequest

    def made(self, served: Served) -> ServeRequest:
        """The request for a version, by whose ladder `detail` is understood; raises BadRequest and NotServed."""
        counts = asks(self.asked, _count_for(self.asked.model, served), served.counts)
        self.served = served
        self.request = serve_request(
            self.asked, self.id, self._files, counts, self._terms, self._limits, self._deadline
        )
        return self.request

    def envelope(self) -> shape.Envelope:
        return shape.Envelope(f"chatcmpl-{self.id}", self.asked.model, self.served, int(time.time()))


class Endpoint:
    """The routes. A request is understood, checked and only then given to the backend."""

    def __init__(
        self, backend: Backend, options: Options, keys: KeyStore | None, series: Exposition, trace: Trace | None
    ) -> None:
        self._backend, self._options, self._keys = backend, options, keys
        self._series, self._trace = series, trace
        self._used: dict[str, Usage] = {}
        self._html = PAGE.read_bytes()

    async def chat(self, request: Request) -> Response:
        """Answer a chat completion, whole or as server-sent events."""
        began_s, deadline = time.perf_counter(), Deadline(self._options.limits.timeout_s)
        key: Key | None = request.scope["state"]["key"]
        owner = key.name if key else ""
        served = self._backend.served()
        asked: ChatRequest | None = None
        try:
            body = await request.body()
            asked = await _read(len(body), parse, body)
            _count_for(asked.model, served)
            files = await self._files(asked, request.scope["state"]["hold"])
            terms = self._options.terms if key is None else Terms(key.may_bend, key.min_quality, key.priority)
            asking = Asking(asked, files, terms, self._options.limits, deadline)
            if asked.stream:
                return await self._streamed(asking, owner, request, began_s)
            answer = await unless_left(request.receive, self._backend.answer(asking.made))
        except NotServed as error:
            code = self._status(served, owner, 404)
            return JSONResponse(problem(code, str(error), "model", "model_not_found"), code)
        except BadRequest as error:
            code = self._status(served, owner, 400)
            self._series.refused("input")
            return JSONResponse(problem(code, str(error), _field(error.field, asked)), code)
        except Busy as error:
            code = self._status(served, owner, 429)
            self._series.refused(error.cause)
            told = {"retry-after": str(max(1, math.ceil(error.retry_after_s)))} | ({FULL: "1"} if error.full else {})
            return JSONResponse(problem(code, str(error), None, "busy"), code, told)
        except Left:
            return Response(status_code=self._status(served, owner, CLIENT_LEFT))
        except asyncio.CancelledError:
            # How Serve says that the client left.
            self._status(served, owner, CLIENT_LEFT)
            raise
        self._answered(asking, answer, owner, began_s)
        told = {**shape.headers(asking.served, answer.done), "x-request-id": asking.id}
        return JSONResponse(shape.completion(asking.envelope(), answer), self._status(served, owner, 200), told)

    async def fault(self, request: Request, error: Exception) -> Response:
        """Our own fault: counted, and told without its inside, which goes to the log."""
        away = isinstance(error, ConnectionError)
        key: Key | None = request.scope["state"]["key"]
        code = self._status(self._backend.served(), key.name if key else "", 503 if away else 500)
        message = "the engine is being replaced; try again" if away else "the server failed"
        return JSONResponse(problem(code, message), code)

    async def models(self) -> Response:
        """The model that is served, with its ladder."""
        return JSONResponse({"object": "list", "data": [_model(self._backend.served())]})

    async def model(self, name: str) -> Response:
        """One model."""
        served = self._backend.served()
        if name.partition("@")[0] != served.name:
            message = f"model {name[:80]!r} is not served here; {served.name!r} is"
            return JSONResponse(problem(404, message, "model", "model_not_found"), 404)
        return JSONResponse(_model(served))

    async def healthz(self) -> Response:
        """Whether this process runs."""
        return JSONResponse({"status": "ok"})

    async def readyz(self) -> Response:
        """Whether an engine answers."""
        if await self._backend.load():
            return JSONResponse({"status": "ready"})
        return JSONResponse(problem(503, "no engine answers yet"), 503)

    async def load(self) -> Response:
        """Each engine's load now: what the page's chart shows."""
        return JSONResponse({"model": self._backend.served().name, "replicas": dict(await self._backend.load())})

    async def examples(self) -> Response:
        """Images and questions to try the model with."""
        return JSONResponse({"object": "list", "data": list(self._backend.examples())})

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        text = self._series.text(self._backend.served(), await self._backend.load())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self) -> Response:
        """The page that people look at."""
        policy = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        policy += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        headers = {"content-security-policy": policy, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
        return Response(self._html, media_type="text/html; charset=utf-8", headers=headers)

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Write usage down as it comes in, off the event loop, and once more at the end."""
        task = asyncio.create_task(self._record_usage())
        yield
        task.cancel()
        if self._keys is not None and self._used:
            self._keys.record(self._used)

    async def _files(self, asked: ChatRequest, hold: Callable[[int], None]) -> Mapping[str, bytes]:
        shown = images(asked)
        if len(shown) > self._options.max_images:
            raise BadRequest("messages", f"{len(shown)} images; at most {self._options.max_images} are allowed")
        files = {
            where: await _read(len(image.url), data_image, where, image) for where, image in shown if _is_data(image)
        }
        return files | await self._fetched([(where, image.url) for where, image in shown if not _is_data(image)], hold)

    async def _fetched(self, urls: Sequence[tuple[str, str]], hold: Callable[[int], None]) -> dict[str, bytes]:
        """Images by URL; all of a request's have one allowance of bytes, held while they come, and one of seconds."""
        hosts, room = self._options.image_hosts, self._options.max_image_bytes
        files: dict[str, bytes] = {}
        if not urls:
            return files
        try:
            hold(room)
        except Refused as error:
            raise Busy(str(error), retry_after_s=1.0) from None
        ends_s = time.monotonic() + TIMEOUT_S
        for where, url in urls:
            left_s = max(0.0, ends_s - time.monotonic())
            files[where] = await fetch(where, url, hosts, room, timeout_s=left_s)
            room -= len(files[where])
        hold(-room)
        return files

    async def _streamed(self, asking: Asking, owner: str, request: Request, began_s: float) -> Response:
        pieces = self._backend.stream(asking.made)
        # Nothing is sent before the first piece: until then a refusal can still be an HTTP status.
        head = await unless_left(request.receive, anext(pieces))
        served, options = asking.served, asking.asked.stream_options

        def ended(text: str, done: Done) -> None:
            self._answered(asking, Whole(text, done), owner, began_s)

        def closed(code: int, sent: int) -> None:
            self._status(served, owner, code)
            if code == CLIENT_LEFT and owner:
                # What was encoded and written for him was used, though he did not wait for the end.
                self._use(owner, Usage(1, len(head.visual_tokens), sum(head.visual_tokens), sent))

        self._series.first_token(served.name, time.perf_counter() - began_s)
        with_usage = options is not None and options.include_usage
        return EventStream(head, pieces, asking.envelope(), with_usage, ended, closed)

    def _answered(self, asking: Asking, answer: Whole, owner: str, began_s: float) -> None:
        done, served = answer.done, asking.served
        self._series.answered(served.name, owner, done, time.perf_counter() - began_s)
        if owner:
            self._use(owner, Usage(1, len(done.visual_tokens), sum(done.visual_tokens), done.completion_tokens))
        if self._trace is not None:
            self._trace(asking.request, answer, served, owner)

    def _status(self, served: Served, owner: str, code: int) -> int:
        self._series.status(served.name, owner, code)
        return code

    def _use(self, owner: str, used: Usage) -> None:
        self._used[owner] = self._used.get(owner, Usage()) + used

    async def _record_usage(self) -> None:
        while self._keys is not None:
            await asyncio.sleep(USAGE_PERIOD_S)
            used, self._used = self._used, {}
            try:
                if used:
                    await asyncio.to_thread(self._keys.record, used)
            # A file that is locked or a disk that is full now need not be so in a second.
            except (sqlite3.Error, OSError):
                log.exception("the keys' usage could not be written down; it will be tried again")
                for owner, more in used.items():
                    self._use(owner, more)


def _count_for(model: str, served: Served) -> int | None:
    """The count in a model's name; raises NotServed where it is not the one that is served."""
    name, count = model_name(model)
    if name not in (served.name, f"{served.name}/{served.version}"):
        raise NotServed(f"model {name!r} is not served here; {served.name!r} is")
    return count


async def _read(size: int, function: Callable[..., T], *arguments: Any) -> T:
    """What a function makes of so many bytes, in a thread where they are many."""
    return function(*arguments) if size < APART_BYTES else await asyncio.to_thread(function, *arguments)


def _is_data(image: ImageUrl) -> bool:
    return image.url[:5].lower() == "data:"


def _model(served: Served) -> Mapping[str, Any]:
    ladder = [{"id": f"{served.name}@{rung.count}", **rung.model_dump()} for rung in served.rungs]
    about = {"version": served.version, "metric": served.metric, "ladder": ladder}
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "tokendial", **about}


def _field(name: str, asked: ChatRequest | None) -> str:
    """A field in the client's words: the door that he used, and his images by their place in the messages."""
    if asked is None:
        return name
    if name == "max_completion_tokens" and asked.max_completion_tokens is None:
        return "max_tokens"
    if name == "slo.min_quality" and (asked.slo is None or asked.slo.min_quality is None):
        # The floor is the key's, so what is wrong is the count.
        name = "visual_tokens"
    if name == "visual_tokens" and name not in asked.model_fields_set:
        return "model" if "@" in asked.model else "messages"
    number = name.removeprefix("images.")
    return name if number == name else f"{images(asked)[int(number)][0]}.url"


async def _http_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(problem(error.status_code, str(error.detail)), error.status_code, error.headers)

"""Traces of a sample of served answers: one trace an answer, a span for each part, bound to the version that answered.

Neither images nor texts are sent: counts, reasons, times, and the digests of the images. Sending is a thread's work
behind a bounded queue; where the server is away or slow, traces are dropped and counted, never answers.
"""

import os
import queue
import random
import threading
import time
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

os.environ.setdefault("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracing.constant import TraceMetadataKey

from tokendial.serve.backend import Served, Whole
from tokendial.serve.request import ServeRequest
from tokendial.tracking.opening import experiment_id
from tokendial.tracking.server import AWAY, connect, logger, probe, reason
from tokendial.tracking.uri import redact

PARTS = ("queue", "image", "encode", "prefill", "decode")
# What waits holds its images, of up to some megabytes each.
WAITING = 32
AWAY_S = 60.0


@dataclass(frozen=True)
class _Answer:
    request: ServeRequest
    whole: Whole
    served: Served
    owner: str
    ended_ns: int = field(default_factory=time.time_ns)


class Tracer:
    """Sends a `share` of the answers it is told to an MLflow experiment; made where the answers are given."""

    def __init__(self, uri: str, experiment: str, share: float) -> None:
        self.dropped = 0
        self._uri, self._experiment, self._share = uri, experiment, share
        self._random = random.Random()
        self._waiting: queue.Queue[_Answer | None] = queue.Queue(WAITING)
        self._models: dict[str, str | None] = {}
        self._thread = threading.Thread(target=self._send_all, name="tokendial-traces", daemon=True)
        self._thread.start()

    def __call__(self, request: ServeRequest, whole: Whole, served: Served, owner: str) -> None:
        """Take an answer, or not; never waits."""
        if self._random.random() >= self._share:
            return
        try:
            self._waiting.put_nowait(_Answer(request, whole, served, owner))
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Send what waits, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _send_all(self) -> None:
        place: str | None = None
        away_until = 0.0
        while (answer := self._waiting.get()) is not None:
            if time.monotonic() < away_until:
                self.dropped += 1
                continue
            try:
                # Each time: that a trace could not be sent, MLflow only logs.
                probe(self._uri)
                if place is None:
                    mlflow.set_tracking_uri(self._uri)
                    place = experiment_id(connect(self._uri), self._uri, self._experiment)
                self._send(answer, place)
            except AWAY as error:
                self.dropped += 1
                away_until = time.monotonic() + AWAY_S
                logger.warning("traces to %s are dropped for a minute: %s", redact(self._uri), reason(error, self._uri))

    def _send(self, answer: _Answer, place: str) -> None:
        request, done, served = answer.request, answer.whole.done, answer.served
        began_ns = answer.ended_ns - _ns(done.latency_ms.get("total", 0.0))
        bound = self._model(served)
        root = mlflow.start_span_no_context(
            "chat completion",
            span_type="CHAT_MODEL",
            inputs={
                "images": [sha256(image).hexdigest() for image in request.images],
                "counts": [ask.count for ask in request.asks],
                "may_bend": request.may_bend,
                "min_quality": request.min_quality,
                "latency_ms": request.latency_ms,
            },
            tags={"model": served.name, "version": served.version, "reason": done.reason, "key": answer.owner},
            metadata={TraceMetadataKey.MODEL_ID: bound} if bound else None,
            experiment_id=place,
            start_time_ns=began_ns,
        )
        at = began_ns
        for part in PARTS:
            span = mlflow.start_span_no_context(part, parent_span=root, start_time_ns=at)
            at += _ns(done.latency_ms.get(part, 0.0))
            span.end(end_time_ns=at)
        outputs: dict[str, Any] = {
            "visual_tokens": list(done.visual_tokens),
            "wanted_tokens": list(done.wanted_tokens),
            "expected_quality": done.expected_quality,
            "reason": done.reason,
            "finish_reason": done.finish_reason,
            "prompt_tokens": done.prompt_tokens,
            "completion_tokens": done.completion_tokens,
        }
        root.end(outputs=outputs, attributes={"request": request.id}, end_time_ns=answer.ended_ns)

    def _model(self, served: Served) -> str | None:
        """The LoggedModel of a registered version, which its traces are shown with."""
        if served.version not in self._models:
            self._models[served.version] = None
            if served.registered is not None:
                try:
                    found = connect(self._uri).get_model_version(served.registered, served.version)
                except MlflowException as error:
                    logger.warning("traces are not bound to a model: %s", reason(error, self._uri))
                else:
                    self._models[served.version] = found.model_id
        return self._models[served.version]


def _ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)

"""What the endpoint's surface hands to an engine and what comes back: plain frozen data, no wire format, no tensors."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Reason = Literal["asked", "largest", "smallest", "target", "bent", "shadow"]
FinishReason = Literal["stop", "length"]
BusyCause = Literal["busy", "target", "expired"]


class Deadline:
    """A time of this process's own clock, `at`; on the way to another process it is what is left when it is sent."""

    def __init__(self, left_s: float) -> None:
        self.at = time.monotonic() + left_s

    @property
    def left_s(self) -> float:
        return self.at - time.monotonic()

    def __reduce__(self) -> tuple[type["Deadline"], tuple[float]]:
        return Deadline, (self.left_s,)


@dataclass(frozen=True)
class Turn:
    """One chat message; `parts` are texts and indices into the request's images, in order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | int, ...]


@dataclass(frozen=True)
class Ask:
    """What was asked for one image: an exact `count`, which is never bent, or the server's choice."""

    count: int | None = None


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; generation ends before the first of `stop`, or after `max_new_tokens`."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServeRequest:
    """One request. Asks are per image; consent and targets hold for the whole request.

    Args:
        images: encoded image files, of the formats that the server takes.
        asks: one per image.
        may_bend: whether fewer tokens than asked for may be used under load; exact counts are never bent.
        min_quality: floor of the expected quality in [0, 1].
        latency_ms: target of the whole answer, from admission to its last token.
        deadline: the request is dropped if it has not started by then, however often and to whom it was sent.
        priority: larger is served first among requests of the same age.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[bytes, ...]
    asks: tuple[Ask, ...]
    sampling: Sampling
    may_bend: bool = False
    min_quality: float | None = None
    latency_ms: float | None = None
    deadline: Deadline | None = None
    priority: int = 0


@dataclass(frozen=True)
class Chunk:
    """A piece of the answer, and what the dial was turned to: every piece has it, so the first one does."""

    text: str
    visual_tokens: tuple[int, ...]
    expected_quality: float | None
    reason: Reason


@dataclass(frozen=True)
class Done:
    """The end of an answer. `latency_ms` has the parts queue, image, encode, prefill, decode and total.

    `wanted_tokens` is what the images would have had at the count asked for: what capacity is planned on.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    visual_tokens: tuple[int, ...]
    wanted_tokens: tuple[int, ...]
    expected_quality: float | None
    reason: Reason
    latency_ms: Mapping[str, float] = field(default_factory=dict)


class BadRequest(ValueError):
    """The request cannot be served as it is; `field` names the part of it that is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Busy(Exception):
    """No room in the queue, no hope of an answer in time, or none begun in time; `retry_after_s`: when to try again.

    `full` says that there is room for nobody, whatever he asks for.
    """

    def __init__(self, message: str, retry_after_s: float, full: bool = False, cause: BusyCause = "busy") -> None:
        super().__init__(message)
        self.retry_after_s, self.full = retry_after_s, full
        self.cause: BusyCause = cause

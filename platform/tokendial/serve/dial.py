"""From a request's three doors to what is asked of the engine: visual tokens, consent, targets and sampling.

The doors, in this order: `visual_tokens` (exact, per image), `model="NAME@64"` (exact, every image), and the standard
`image_url.detail` (low: the smallest count of the ladder, high: the largest, auto or absent: the server's choice).
`low` and `high` are as exact as a number: only `auto` bends.
"""

import re
from binascii import a2b_base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokendial.serve.request import Ask, BadRequest, Deadline, Sampling, ServeRequest, Turn
from tokendial.serve.schema import ChatRequest, ImageUrl, TextPart, images

MODEL = re.compile(r"(?P<name>[^@]+)(?:@(?P<count>[1-9][0-9]{0,6}))?")
DATA_URI = re.compile(
    r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(?P<options>(?:;[\w.+-]+=[\w.+-]+)*)(?P<base64>;base64)?,", re.IGNORECASE
)
MAX_HEAD = 256
# Characters decoded at once, which takes half a millisecond, and nothing else of the process runs meanwhile.
PIECE = 2**18
KINDS = ("image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif", "application/octet-stream")


@dataclass(frozen=True)
class Terms:
    """What whoever asks may do: what the key says, or the server's default where no key is needed."""

    may_bend: bool = False
    min_quality: float | None = None
    priority: int = 0


@dataclass(frozen=True)
class Limits:
    """What a request gets where it does not say, and the least that is served."""

    default_new_tokens: int = 64
    timeout_s: float = 60.0


def model_name(text: str) -> tuple[str, int | None]:
    """Name and count of `NAME` or `NAME@64`; raises BadRequest."""
    found = MODEL.fullmatch(text)
    if found is None:
        raise BadRequest("model", f"model {text[:80]!r} is not of the form NAME or NAME@COUNT, e.g. digits@16")
    return found["name"], None if found["count"] is None else int(found["count"])


def asks(request: ChatRequest, suffix: int | None, counts: Sequence[int]) -> tuple[Ask, ...]:
    """What each image asks for; `counts` is the ladder, ascending."""
    shown = images(request)
    if "visual_tokens" in request.model_fields_set:
        given = request.visual_tokens
        return tuple(Ask(count=count) for count in (given if isinstance(given, list) else [given] * len(shown)))
    if suffix is not None:
        return (Ask(count=suffix),) * len(shown)
    doors = {"low": Ask(count=counts[0]), "high": Ask(count=counts[-1])}
    return tuple(doors.get(image.detail or "auto", Ask()) for _, image in shown)


def serve_request(
    request: ChatRequest,
    id: str,
    files: Mapping[str, bytes],
    asked: tuple[Ask, ...],
    terms: Terms,
    limits: Limits,
    deadline: Deadline,
) -> ServeRequest:
    """The engine's request; `files` holds the image of each field that has one."""
    slo = request.slo
    if slo is not None and asked and all(ask.count is not None for ask in asked):
        raise BadRequest("slo", "slo has no effect beside exact counts: give one or the other")
    floors = [floor for floor in (terms.min_quality, slo and slo.min_quality) if floor is not None]
    return ServeRequest(
        id=id,
        turns=_turns(request),
        images=tuple(files[where] for where, _ in images(request)),
        asks=asked,
        sampling=_sampling(request, limits.default_new_tokens),
        may_bend=terms.may_bend if request.may_bend is None else request.may_bend,
        min_quality=max(floors) if floors else None,
        latency_ms=slo and slo.latency_ms,
        deadline=deadline,
        priority=terms.priority,
    )


def data_image(where: str, image: ImageUrl) -> bytes:
    """The file in a data URI; raises BadRequest. Formats are decided by content later, never by the URI."""
    head = DATA_URI.match(image.url[:MAX_HEAD])
    if head is None:
        raise BadRequest(f"{where}.url", "the image must be a data URI: data:image/png;base64,…")
    if (head["kind"] or "").lower() not in KINDS:
        raise BadRequest(f"{where}.url", f"the data URI says {head['kind'] or 'no type'!s}; images are {KINDS[0]}, …")
    if not head["base64"]:
        raise BadRequest(f"{where}.url", "the data URI must be base64: data:image/png;base64,…")
    start, end = head.end(), len(image.url)
    try:
        pieces = [a2b_base64(image.url[at : at + PIECE], strict_mode=True) for at in range(start, end, PIECE)]
        # Each piece was held to end as a whole text may.
        if image.url.find("=", start, end - 2) >= 0:
            raise ValueError("padding before the end")
    except ValueError:
        raise BadRequest(f"{where}.url", "the data URI is not valid base64") from None
    if not pieces:
        raise BadRequest(f"{where}.url", "the image is empty")
    return b"".join(pieces)


def _turns(request: ChatRequest) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    number = 0
    for message in request.messages:
        role = "system" if message.role == "developer" else message.role
        if isinstance(message.content, str):
            turns.append(Turn(role, (message.content,)))
            continue
        parts: list[str | int] = []
        for part in message.content:
            if isinstance(part, TextPart):
                parts.append(part.text)
            else:
                parts.append(number)
                number += 1
        turns.append(Turn(role, tuple(parts)))
    return tuple(turns)


def _sampling(request: ChatRequest, default_new_tokens: int) -> Sampling:
    stop = request.stop or ()
    return Sampling(
        max_new_tokens=request.max_completion_tokens or request.max_tokens or default_new_tokens,
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )

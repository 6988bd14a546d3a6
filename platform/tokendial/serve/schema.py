"""The OpenAI chat-completions dialect that the endpoint speaks: what it takes, and its errors. All else is refused.

A request is strict JSON (no duplicate keys, no NaN) of strict types; an unknown field is an error that names it. The
dial is `visual_tokens`, `model="NAME@64"` or the standard `image_url.detail`; `slo` asks for an outcome.
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokendial.serve.request import BadRequest

MAX_MESSAGES = 256
MAX_IMAGES = 16
MAX_STOPS = 4
MAX_NEW_TOKENS = 4096
# Far more than any object of a request has. Each name that is not known would be an error, made only to be dropped.
MAX_NAMES = 64

Text = Annotated[str, Field(max_length=1_000_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0, le=2**20)]


class Part(BaseModel):
    """Fields that are not listed are errors, and so are other types: "3" is no number and 1 no truth value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Part):
    type: Literal["text"]
    text: Text


class ImageUrl(Part):
    url: str = Field(description="a data URI of a PNG, JPEG, WebP or GIF; https only where the server allows it")
    detail: Literal["low", "high", "auto"] | None = Field(
        default=None, description="low: the smallest count; high: the largest; auto: the server's choice"
    )


class ImagePart(Part):
    type: Literal["image_url"]
    image_url: ImageUrl


# The first bad item of a list is all that is told.
Parts = Annotated[
    list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
    Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
]
Texts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
Empty = Annotated[list[Any], Field(max_length=0)]


class UserMessage(Part):
    role: Literal["user"]
    content: Text | Parts


class SystemMessage(Part):
    role: Literal["system", "developer"]
    content: Text | Texts


class AssistantMessage(Part):
    """An answer as OpenAI's client sends it back: with what no answer here has, empty."""

    role: Literal["assistant"]
    content: Text | Texts
    refusal: None = None
    annotations: Empty | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Empty | None = None
    parsed: None = None


Message = Annotated[UserMessage | SystemMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Part):
    include_usage: bool = Field(default=False, description="send a last chunk that holds the usage alone")


class Slo(Part):
    """An outcome instead of a count: the largest count that meets it is used."""

    latency_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = Field(
        default=None, description="milliseconds from admission to the last token"
    )
    min_quality: Fraction | None = Field(default=None, description="least expected quality, in [0, 1]")


class ChatRequest(Part):
    """A chat completion. `visual_tokens`, `slo` and `may_bend` are additions; all others are OpenAI's."""

    model: Annotated[str, Field(min_length=1, max_length=200)] = Field(description="NAME, or NAME@COUNT")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    visual_tokens: Count | Annotated[list[Count], Field(min_length=1, max_length=MAX_IMAGES)] = Field(
        default=0, description="exact visual tokens of every image, or a list with a count for each"
    )
    slo: Slo | None = None
    may_bend: bool | None = Field(
        default=None, description="whether fewer visual tokens may be used under load; default: what the key says"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(gt=0, le=MAX_NEW_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(gt=0, le=MAX_NEW_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(default=None, description="default 0: greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=200)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=MAX_STOPS)]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None


class ErrorBody(BaseModel):
    """OpenAI's error object; `param` is the field that is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    error: ErrorBody


def parse(body: bytes) -> ChatRequest:
    """The request in a body; raises BadRequest that names the field."""
    try:
        document = json.loads(body, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise BadRequest("body", "the body is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadRequest("body", f"the body is not JSON: {error}") from None
    except ValueError as error:
        if isinstance(error, BadRequest):
            raise
        # Python refuses whole numbers of thousands of digits.
        raise BadRequest("body", "the body has a number that is too long") from None
    if not isinstance(document, dict):
        raise BadRequest("body", "the body must be a JSON object")
    _refuse_surrogates(document)
    try:
        request = ChatRequest.model_validate(document)
    except ValidationError as error:
        raise _named(error, document) from None
    _check(request)
    return request


def images(request: ChatRequest) -> list[tuple[str, ImageUrl]]:
    """Every image with the path of its field, in order."""
    found: list[tuple[str, ImageUrl]] = []
    for number, message in enumerate(request.messages):
        if isinstance(message, UserMessage) and not isinstance(message.content, str):
            for place, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    found.append((f"messages[{number}].content[{place}].image_url", part.image_url))
    return found


def problem(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return ErrorAnswer(error=ErrorBody(message=message, type=kind, param=param, code=code)).model_dump()


def _check(request: ChatRequest) -> None:
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise BadRequest("max_tokens", "max_tokens and max_completion_tokens mean the same; give one")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options", "stream_options goes with stream = true only")
    if request.messages[-1].role != "user":
        raise BadRequest(f"messages[{len(request.messages) - 1}].role", "the last message must be the user's")
    number = len(images(request))
    if number > MAX_IMAGES:
        raise BadRequest("messages", f"the request has {number} images; at most {MAX_IMAGES} are allowed")
    if "visual_tokens" in request.model_fields_set:
        if not number:
            raise BadRequest("visual_tokens", "visual_tokens needs an image, and the messages have none")
        if isinstance(request.visual_tokens, list) and len(request.visual_tokens) != number:
            given = len(request.visual_tokens)
            raise BadRequest("visual_tokens", f"visual_tokens has {given} counts for {number} images")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_NAMES:
        raise BadRequest("body", f"the body has an object of {len(pairs)} keys; at most {MAX_NAMES} are allowed")
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise BadRequest("body", f"the key {max(names, key=names.count)!r} is given twice")
    return made


def _constant(name: str) -> NoReturn:
    raise BadRequest("body", f"{name} is not JSON")


def _refuse_surrogates(value: Any) -> None:
    """A lone half of a surrogate pair is valid JSON and no text: it cannot be encoded, and no tokenizer takes it."""
    todo = [value]
    while todo:
        match todo.pop():
            case str(text) if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise BadRequest("body", "the body has half of a surrogate pair in a text") from None
            case dict(made):
                todo += [*made, *made.values()]
            case list(items):
                todo += items


_TAGS = {"text", "image_url", "user", "system", "developer", "assistant"}


def _named(error: ValidationError, document: Any) -> BadRequest:
    """The first problem that a reader can act on: of a union, the alternative that came furthest."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    worst = max(problems, key=lambda found: len(path(found["loc"], document)))
    where = _written(path(worst["loc"], document))
    if worst["type"] == "extra_forbidden":
        return BadRequest(where, f"{where} is not supported")
    if worst["type"] == "none_required":
        return BadRequest(where, f"{where} is not supported other than as null")
    message = worst["msg"]
    return BadRequest(where, f"{where}: {message[0].lower()}{message[1:]}")


def path(location: Iterable[int | str], document: Any) -> list[int | str]:
    """A validation's location without the names of the union members it passed through."""
    steps: list[int | str] = []
    way = list(location)
    for number, step in enumerate(way):
        match document, step:
            case (dict(), "text") if number + 1 < len(way):
                # The name of the member: nothing lies in a text.
                continue
            case (list(items), int(place)) if place < len(items):
                document = items[place]
            case (dict(made), str(name)) if name in made:
                document = made[name]
            case (dict(), str(name)) if name.isidentifier() and name not in _TAGS:
                document = None
            case _:
                continue
        steps.append(step)
    return steps


def _written(steps: Iterable[int | str]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.removeprefix(".")[:200] or "body"

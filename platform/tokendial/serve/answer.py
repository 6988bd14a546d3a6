"""Answers in OpenAI's shape, and how they tell what the dial did: usage, headers and `system_fingerprint`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokendial.serve.backend import Served, Whole
from tokendial.serve.request import Chunk, Done

SSE_END = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Envelope:
    """What every piece of one answer repeats; `model` is the name as it was asked for."""

    id: str
    model: str
    served: Served
    created: int


def completion(envelope: Envelope, answer: Whole) -> dict[str, Any]:
    """A chat.completion object."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": None,
        "finish_reason": answer.done.finish_reason,
    }
    return {
        **_head(envelope, "chat.completion"),
        "choices": [choice],
        "usage": usage(answer.done),
        "system_fingerprint": fingerprint(envelope.served, answer.done),
    }


def first(envelope: Envelope, item: Chunk | Done) -> bytes:
    """The chunk that opens a stream."""
    return _chunk(envelope, item, {"role": "assistant", "content": ""})


def piece(envelope: Envelope, item: Chunk) -> bytes:
    """A chunk with a piece of the answer."""
    return _chunk(envelope, item, {"content": item.text})


def last(envelope: Envelope, done: Done, with_usage: bool) -> bytes:
    """The chunk with the finish reason, the one with the usage where it was asked for, and the end."""
    ending = _chunk(envelope, done, {}, done.finish_reason)
    if with_usage:
        ending += event({**_chunk_head(envelope, done), "choices": [], "usage": usage(done)})
    return ending + SSE_END


def event(document: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usage(done: Done) -> dict[str, Any]:
    """OpenAI's usage, and what the dial did for it."""
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "visual_tokens": sum(done.visual_tokens),
        "visual_tokens_per_image": list(done.visual_tokens),
        "wanted_tokens_per_image": list(done.wanted_tokens),
        "expected_quality": done.expected_quality,
        "reason": done.reason,
        "latency_ms": {part: round(value, 3) for part, value in done.latency_ms.items()},
    }


def headers(served: Served, item: Chunk | Done) -> dict[str, str]:
    """What the dial did, for clients that read headers; with the end of an answer also where the time went."""
    told = {
        "x-tokendial-version": served.version,
        "x-tokendial-visual-tokens": _counts(item),
        "x-tokendial-reason": item.reason,
    }
    if item.expected_quality is not None:
        told["x-tokendial-expected-quality"] = f"{item.expected_quality:.4f}"
    if isinstance(item, Done):
        told["server-timing"] = ", ".join(f"{part};dur={value:.2f}" for part, value in item.latency_ms.items())
    return told


def fingerprint(served: Served, item: Chunk | Done) -> str:
    """`NAME/VERSION@COUNT:REASON`: the same model, version and counts answer alike."""
    return f"{served.name}/{served.version}@{_counts(item)}:{item.reason}"


def _counts(item: Chunk | Done) -> str:
    return ",".join(map(str, item.visual_tokens)) or "0"


def _head(envelope: Envelope, kind: str) -> dict[str, Any]:
    return {"id": envelope.id, "object": kind, "created": envelope.created, "model": envelope.model}


def _chunk_head(envelope: Envelope, item: Chunk | Done) -> dict[str, Any]:
    told = fingerprint(envelope.served, item)
    return {**_head(envelope, "chat.completion.chunk"), "system_fingerprint": told}


def _chunk(envelope: Envelope, item: Chunk | Done, delta: Mapping[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return event({**_chunk_head(envelope, item), "choices": [choice]})

"""What the endpoint takes: strict JSON, strict types, and an error that names the field."""

import json
import time
from typing import Any

import pytest
from endpoint_lab import chat, image
from pydantic import ValidationError
from tokendial.serve.request import BadRequest
from tokendial.serve.schema import MAX_IMAGES, ChatRequest, images, parse


def encoded(document: Any) -> bytes:
    return document if isinstance(document, bytes) else json.dumps(document).encode()


def refusal(document: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(encoded(document))
    return caught.value


def user(content: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}]}


def test_everything_openai_has_and_we_serve_is_taken() -> None:
    request = parse(
        encoded(
            chat(
                image("low"), image(), stream=True, stream_options={"include_usage": True}, max_completion_tokens=8,
                temperature=0.5, top_p=0.9, stop=["a", "b"], seed=-3, n=1, slo={"latency_ms": 50, "min_quality": 0.9},
                may_bend=True,
            )
        )
    )  # fmt: skip
    assert [(where, shown.detail) for where, shown in images(request)] == [
        ("messages[0].content[0].image_url", "low"),
        ("messages[0].content[1].image_url", None),
    ]


def test_null_means_absent_for_openais_optional_fields() -> None:
    absent = dict.fromkeys(("stream", "max_tokens", "temperature", "top_p", "stop", "seed", "n", "stream_options"))
    assert parse(encoded({**chat(), **absent})).stop is None


EMPTY = ("refusal", "annotations", "audio", "function_call", "tool_calls", "parsed")


def answered(**fields: Any) -> dict[str, Any]:
    question = {"role": "user", "content": "x"}
    return {"model": "m", "messages": [question, {"role": "assistant", "content": "y", **fields}, question]}


def test_what_an_answer_does_not_have_may_come_back_empty() -> None:
    assert parse(encoded(answered(**dict.fromkeys(EMPTY)))).messages[1].content == "y"
    assert parse(encoded(answered(annotations=[], tool_calls=[]))).messages[1].content == "y"


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("value", ["no", {"id": "a"}, [{"id": "a"}], False], ids=str)
def test_what_no_answer_here_has_is_refused_by_name(name: str, value: Any) -> None:
    error = refusal(answered(**{name: value}))
    assert error.field == f"messages[1].{name}"
    assert str(error).startswith(f"messages[1].{name}")


@pytest.mark.parametrize(
    "name", ["tools", "functions", "logprobs", "response_format", "user", "logit_bias", "presence_penalty", "store"]
)
def test_an_unsupported_field_is_refused_by_name(name: str) -> None:
    error = refusal({**chat(), name: 1})
    assert error.field == name
    assert str(error) == f"{name} is not supported"


@pytest.mark.parametrize("value", [0, -1, 1.5, "4", None, [], [4, 4], True, 2**40, {"count": 4}, [0], ["4"]])
def test_a_count_out_of_range_or_of_another_type_is_refused(value: Any) -> None:
    assert refusal(chat(image(), visual_tokens=value)).field.startswith("visual_tokens")


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"messages": []}, "model"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": 3, "messages": [{"role": "user", "content": "x"}]}, "model"),
        (user(5), "messages[0].content"),
        (user([]), "messages[0].content"),
        (user([{"type": "audio"}]), "messages[0].content[0]"),
        (user([{"type": "text", "txt": "x"}]), "messages[0].content[0].txt"),
        (user([{"type": "text", "text": "x", "lang": "en"}]), "messages[0].content[0].lang"),
        (user([{"type": "image_url", "image_url": "x"}]), "messages[0].content[0].image_url"),
        (user([{"type": "image_url", "image_url": {"url": 1}}]), "messages[0].content[0].image_url.url"),
        (user([image("ultra")]), "messages[0].content[0].image_url.detail"),
        ({"model": "m", "messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"model": "m", "messages": [{"role": "assistant", "content": "x"}]}, "messages[0].role"),
        ({"model": "m", "messages": [{"role": "system", "content": [image()]}]}, "messages[0].content[0].type"),
        (chat(visual_tokens=4), "visual_tokens"),
        (chat(*[image()] * (MAX_IMAGES + 1)), "messages"),
        (chat(max_tokens=4, max_completion_tokens=4), "max_tokens"),
        (chat(stream_options={"include_usage": True}), "stream_options"),
        (chat(slo={"latency": 3}), "slo.latency"),
        (chat(temperature=3), "temperature"),
        (chat(top_p=0), "top_p"),
        (chat(stop=["a"] * 5), "stop"),
        (chat(stream=1), "stream"),
        (chat(seed=2**70), "seed"),
        (chat(n=2), "n"),
        (chat(n=True), "n"),
        (b"", "body"),
        (b"[]", "body"),
        (b"\xff", "body"),
        (b"{", "body"),
        (b'{"model": NaN}', "body"),
        (b'{"model": "a", "model": "b"}', "body"),
        (b"[" * 200_000, "body"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "body"),
        (b'{"model": "\\ud800"}', "body"),
        (b'{"\\udfff": 1}', "body"),
    ],
)
def test_a_bad_request_names_its_field(document: Any, field: str) -> None:
    error = refusal(document)
    assert error.field == field
    assert str(error)


@pytest.mark.parametrize("twice", [True, False], ids=["one twice", "none known"])
def test_a_body_of_many_names_is_refused_before_anything_is_made_of_them(twice: bool) -> None:
    names = [f"{number:05d}" for number in range(25_000)] + ["00000"] * twice
    body = b"{" + b",".join(b'"%s":1' % name.encode() for name in names) + b"}"
    began = time.process_time()
    error = refusal(body)
    assert time.process_time() - began < 1
    assert str(error) == f"the body has an object of {len(names)} keys; at most 64 are allowed"


def test_of_many_bad_parts_the_first_is_all_that_is_looked_for() -> None:
    part = {"type": "text", "text": "x", **{f"x{number}": 1 for number in range(60)}}
    message = {"role": "user", "content": [part] * 20}
    with pytest.raises(ValidationError) as found:
        ChatRequest.model_validate({"model": "m", "messages": [message] * 20})
    assert found.value.error_count() < 100
    assert refusal({"model": "m", "messages": [message]}).field == "messages[0].content[0].x0"


def test_a_name_of_any_length_gives_a_short_error() -> None:
    assert len(refusal({**chat(), "x" * 100_000: 1}).field) <= 200

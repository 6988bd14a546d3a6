"""The three doors of the dial, their order, and what a key's terms do to a request."""

import base64
import json
import random
import threading
import time
from typing import Any

import pytest
from endpoint_lab import PNG, chat, image
from tokendial.serve import dial
from tokendial.serve.dial import Limits, Terms, asks, data_image, model_name, serve_request
from tokendial.serve.request import Ask, BadRequest, Deadline, ServeRequest
from tokendial.serve.schema import ImageUrl, images, parse

COUNTS = (4, 16, 64)


def understood(document: dict[str, Any], terms: Terms = Terms()) -> ServeRequest:  # noqa: B008
    request = parse(json.dumps(document).encode())
    _, suffix = model_name(request.model)
    files = {where: data_image(where, shown) for where, shown in images(request)}
    return serve_request(request, "r", files, asks(request, suffix, COUNTS), terms, Limits(), Deadline(60))


def test_detail_low_is_the_smallest_high_the_largest_and_auto_the_servers_choice() -> None:
    request = understood(chat(image("low"), image("high"), image("auto"), image()))
    assert request.asks == (Ask(count=4), Ask(count=64), Ask(), Ask())
    assert request.images == (PNG,) * 4


def test_the_models_suffix_goes_before_detail() -> None:
    assert understood(chat(image("low"), model="m@16")).asks == (Ask(count=16),)


def test_visual_tokens_go_before_the_suffix() -> None:
    assert understood(chat(image("low"), image(), model="m@16", visual_tokens=9)).asks == (Ask(count=9),) * 2
    assert understood(chat(image(), image(), visual_tokens=[4, 64])).asks == (Ask(count=4), Ask(count=64))


@pytest.mark.parametrize("name", ["m@", "@4", "m@0", "m@-1", "m@1.5", "m@4@4", "m@04", "m@many", "m@" + "9" * 30])
def test_a_model_name_with_a_bad_count_is_refused(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        model_name(name)
    assert caught.value.field == "model"


def test_consent_is_the_requests_where_it_says_and_else_the_keys() -> None:
    bends = Terms(may_bend=True)
    assert not understood(chat(image())).may_bend
    assert understood(chat(image()), bends).may_bend
    assert not understood(chat(image(), may_bend=False), bends).may_bend
    assert understood(chat(image(), may_bend=True)).may_bend


def test_the_higher_of_the_keys_and_the_requests_floor_holds() -> None:
    key = Terms(min_quality=0.8, priority=3)
    assert understood(chat(image()), key).min_quality == 0.8
    assert understood(chat(image(), slo={"min_quality": 0.9}), key).min_quality == 0.9
    assert understood(chat(image(), slo={"min_quality": 0.1, "latency_ms": 40}), key).min_quality == 0.8
    assert understood(chat(image(), slo={"latency_ms": 40}), key).latency_ms == 40
    assert understood(chat(), key).priority == 3


def test_a_target_beside_exact_counts_is_refused() -> None:
    with pytest.raises(BadRequest, match="no effect") as caught:
        understood(chat(image("high"), slo={"latency_ms": 40}))
    assert caught.value.field == "slo"
    assert understood(chat(image("high"), image(), slo={"latency_ms": 40})).latency_ms == 40


def test_turns_hold_texts_and_image_numbers_in_order() -> None:
    document = chat(image(), image(), text="two")
    document["messages"][:0] = [
        {"role": "developer", "content": "be short"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, image()]},
        {"role": "assistant", "content": [{"type": "text", "text": "ok"}]},
    ]
    request = understood(document)
    assert [(turn.role, turn.parts) for turn in request.turns] == [
        ("system", ("be short",)),
        ("user", ("one", 0)),
        ("assistant", ("ok",)),
        ("user", (1, 2, "two")),
    ]


def test_sampling_is_greedy_unless_asked_otherwise() -> None:
    sampling = understood(chat(stop="x", max_tokens=3)).sampling
    assert (sampling.temperature, sampling.top_p, sampling.stop, sampling.max_new_tokens) == (0.0, 1.0, ("x",), 3)
    assert understood(chat()).sampling.max_new_tokens == Limits().default_new_tokens


@pytest.mark.parametrize(
    "url",
    [
        "", "data:", "data:,x", "data:image/png,abc", "data:image/png;base64", "data:image/png;base64,",
        "data:image/png;base64,%%%", "data:image/png;base64,AAA", "data:text/html;base64,AAAA", "DATA",
        "data:image/svg+xml;base64,AAAA", "data:image/png;base64,AA AA", "data:;base64,AAAA", "data:" + "a" * 100_000,
    ],
)  # fmt: skip
def test_a_bad_data_uri_names_its_field(url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        data_image("messages[0].content[0].image_url", ImageUrl(url=url))
    assert caught.value.field == "messages[0].content[0].image_url.url"


def test_a_data_uri_may_be_written_in_capitals() -> None:
    assert data_image("here", ImageUrl(url="DATA:image/PNG;BASE64,AAAA")) == bytes(3)


def test_a_large_image_is_decoded_whole_and_refused_where_it_is_wrong_at_any_place() -> None:
    content = random.Random(0).randbytes(2 * dial.PIECE + 2)
    head, text = "data:image/png;base64,", base64.b64encode(content).decode()
    assert data_image("here", ImageUrl(url=head + text)) == content
    assert data_image("here", ImageUrl(url=head + text[:-4])) == content[: 3 * (len(content) // 3)]
    padded = text[: dial.PIECE - 2] + "==" + text[dial.PIECE :]
    for wrong in (
        text[:-1],
        text[1:],
        padded,
        "%" + text[1:],
        text[: dial.PIECE] + "é" + text[dial.PIECE + 1 :],
        "====",
    ):
        with pytest.raises(BadRequest, match="not valid base64"):
            data_image("here", ImageUrl(url=head + wrong))


def test_while_a_large_image_is_decoded_in_a_thread_others_run() -> None:
    image = ImageUrl(url="data:image/png;base64," + "A" * (64 * 2**20))
    decoding = threading.Thread(target=data_image, args=("here", image))
    ticks = 0
    decoding.start()
    while decoding.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks >= 10, "one call for all of it would keep the interpreter to itself"

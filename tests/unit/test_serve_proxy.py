"""Small bodies travel in the scope; others are fetched, and none is lost or read twice. Who is full says so at once."""

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from endpoint_lab import ScriptedBackend, chat, get, post, running
from starlette.types import Receive, Scope, Send
from tokendial.serve import proxy
from tokendial.serve.ingress import Options, create_app
from tokendial.serve.limits import Caps
from tokendial.serve.proxy import CARRIED, MOST_BYTES, BodyAhead, Crowd


async def told(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with how many bytes were carried, and how many were fetched."""
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    carried, fetched = scope.get(CARRIED), 0
    more = carried is None
    while more:
        message = await receive()
        fetched += len(message["body"])
        more = message["more_body"]
    content = json.dumps({"carried": None if carried is None else len(carried), "fetched": fetched}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": content})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(BodyAhead(told)) as url:
        yield url.removeprefix("http://")


def asked(address: str, body: Any, **headers: str) -> Mapping[str, int | None]:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("POST", "/", body, headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


@pytest.mark.parametrize("size", [1, 100_000, MOST_BYTES])
def test_a_small_body_travels_with_its_request(address: str, size: int) -> None:
    assert asked(address, b"x" * size) == {"carried": size, "fetched": 0}


def test_a_large_body_is_fetched(address: str) -> None:
    assert asked(address, b"x" * (MOST_BYTES + 1)) == {"carried": None, "fetched": MOST_BYTES + 1}


def test_a_body_of_unsaid_length_is_fetched(address: str) -> None:
    assert asked(address, iter([b"one", b"two"])) == {"carried": None, "fetched": 6}


def test_no_body_is_waited_for_where_there_is_none(address: str) -> None:
    assert asked(address, None) == {"carried": None, "fetched": 0}


@pytest.mark.parametrize("first", [b"", b"12345"])
def test_a_slow_body_is_fetched_with_what_had_come_already(address: str, first: bytes) -> None:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n" + first)
        time.sleep(0.2)
        connection.sendall(b"x" * (10 - len(first)))
        answer = connection.recv(65_536)
        while not answer.endswith(b"}\r\n0\r\n\r\n"):
            answer += connection.recv(65_536)
    assert b'{"carried": null, "fetched": 10}' in answer


def test_the_endpoint_answers_what_was_carried_under_the_same_limits_and_hears_who_leaves() -> None:
    backend = ScriptedBackend()
    with running(BodyAhead(create_app(backend, Options(caps=Caps(max_body_bytes=5000))))) as url:
        assert post(url, chat())[0] == 200
        assert post(url, chat(text="x" * 5000))[0] == 413
        assert post(url, b"{")[0] == 400
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.request("POST", "/v1/chat/completions", json.dumps(chat(text="slow")))
        assert backend.asleep.wait(10)
        connection.close()
        deadline = time.monotonic() + 10
        while not backend.cancelled:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_crowd_is_turned_away_without_asking_and_counted_and_only_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proxy, "HOLD_S", 1.0)
    backend = ScriptedBackend()
    with running(Crowd(BodyAhead(create_app(backend, Options())))) as url:
        status, told, headers = post(url, chat(text="full"))
        assert (status, told["error"]["code"]) == (429, "busy")
        again = [post(url, chat(text="full")) for _ in range(3)]
        assert [(status, told) for status, told, _ in again] == [(429, told)] * 3
        assert [each["retry-after"] for _, _, each in again] == [headers["retry-after"]] * 3
        assert len(backend.requests) == 1
        assert get(url, "/healthz")[0] == 200
        time.sleep(1.0)
        assert post(url, chat())[0] == 200
        text = get(url, "/metrics")[1]
        assert re.search(r'tokendial_serve_refusals_total\{cause="busy",process="\w+"\} 4\.0', text)


def test_a_refusal_for_a_requests_own_reasons_turns_nobody_else_away() -> None:
    backend = ScriptedBackend()
    with running(Crowd(create_app(backend, Options()))) as url:
        assert post(url, chat(text="busy"))[0] == 429
        assert post(url, chat())[0] == 200


def test_only_chat_completions_are_turned_away_with_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "HOLD_S", 5.0)
    with running(Crowd(create_app(ScriptedBackend(), Options()))) as url:
        assert post(url, chat(text="full"))[0] == 429
        assert post(url, chat())[0] == 429
        assert [get(url, path)[0] for path in ("/healthz", "/readyz", "/v1/models", "/metrics")] == [200] * 4
        assert get(url, proxy.PATH)[0] == 405

"""Who is slow to send a request's head, or sends one without end, is hung up on, and so are connections too many."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import pytest
import uvicorn
import uvicorn.config
from endpoint_lab import ScriptedBackend, get, running
from tokendial.serve import heads, proxy
from tokendial.serve.ingress import Options, create_app

LIMIT_S = 0.4
WHOLE = b"GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n"


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[str, int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads.TimelyProtocol, "head_s", LIMIT_S)
        patch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", f"{heads.__name__}:TimelyProtocol")
        with running(create_app(ScriptedBackend(), Options())) as url:
            host, port = url.removeprefix("http://").split(":")
            yield host, int(port)


@pytest.fixture
def narrow() -> Iterator[tuple[str, int]]:
    """A server that takes three connections at once, and gives heads all the time that they have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads.TimelyProtocol, "most_connections", 3)
        patch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", f"{heads.__name__}:TimelyProtocol")
        with running(create_app(ScriptedBackend(), Options())) as url:
            host, port = url.removeprefix("http://").split(":")
            yield host, int(port)


def rest(connection: socket.socket) -> tuple[bytes, float]:
    """What the server still says, and how long it took to hang up."""
    began, said = time.monotonic(), b""
    connection.settimeout(5)
    while piece := connection.recv(4096):
        said += piece
    return said, time.monotonic() - began


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\nhost: he"], ids=["silent", "half a head"])
def test_a_slow_client_is_hung_up_on(place: tuple[str, int], begun: bytes) -> None:
    with closing(socket.create_connection(place)) as connection:
        connection.sendall(begun)
        said, took_s = rest(connection)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert 0.5 * LIMIT_S < took_s < 4


def test_a_header_at_a_time_does_not_buy_time(place: tuple[str, int]) -> None:
    with closing(socket.create_connection(place)) as connection:
        began = time.monotonic()
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        # Which error a closed connection gives depends on the moment.
        with suppress(OSError):
            while time.monotonic() < began + 5:
                connection.sendall(b"x-more: of it\r\n")
                time.sleep(0.05)
        assert time.monotonic() - began < 4


def test_a_kept_connection_is_held_to_it_at_every_request_and_not_between_them(place: tuple[str, int]) -> None:
    with closing(socket.create_connection(place)) as connection:
        for _ in range(2):
            connection.sendall(WHOLE)
            said = b""
            # Head and body may come in two pieces.
            while not said.endswith(b"}"):
                said += connection.recv(4096)
            assert said.startswith(b"HTTP/1.1 200 ")
            time.sleep(1.5 * LIMIT_S)
        connection.sendall(WHOLE[:10])
        said, _ = rest(connection)
    assert said.startswith(b"HTTP/1.1 408 ")


def test_a_slow_body_is_not_its_business(place: tuple[str, int]) -> None:
    connection = http.client.HTTPConnection(*place)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("content-length", "2")
    connection.endheaders()
    time.sleep(1.5 * LIMIT_S)
    connection.send(b"{}")
    assert connection.getresponse().status == 400
    connection.close()


def answered(connection: socket.socket) -> bytes:
    """The answer to a request for the server's health, on a connection that stays open."""
    connection.sendall(WHOLE)
    said = b""
    while not said.endswith(b"}"):
        said += connection.recv(4096) or b"}"
    return said


def test_connections_beyond_the_most_are_told_so_and_those_that_are_open_are_served(narrow: tuple[str, int]) -> None:
    with ExitStack() as open_ones:
        held = [open_ones.enter_context(closing(socket.create_connection(narrow, timeout=5))) for _ in range(3)]
        assert all(answered(connection).startswith(b"HTTP/1.1 200 ") for connection in held)
        for _ in range(5):
            with closing(socket.create_connection(narrow)) as one_more:
                said, took_s = rest(one_more)
            head, _, body = said.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 1\r\n" in head
            assert "connections" in json.loads(body)["error"]["message"]
            assert took_s < 4
        assert all(answered(connection).startswith(b"HTTP/1.1 200 ") for connection in held)
        held[0].close()
        deadline = time.monotonic() + 5
        while True:
            with closing(socket.create_connection(narrow, timeout=5)) as one_more:
                if answered(one_more).startswith(b"HTTP/1.1 200 "):
                    break
            assert time.monotonic() < deadline


@pytest.mark.parametrize("before", [b"", WHOLE], ids=["at first", "on a kept connection"])
def test_a_head_without_end_is_given_up_at_its_size(narrow: tuple[str, int], before: bytes) -> None:
    with closing(socket.create_connection(narrow, timeout=5)) as connection:
        if before:
            assert answered(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(WHOLE[:-2] + b"x-endless: ")
        time.sleep(0.1)
        connection.sendall(b"x" * heads.MOST_BYTES)
        time.sleep(0.1)
        # One byte alone: what a server that hangs up has not read yet would take its answer along.
        connection.sendall(b"x")
        said, took_s = rest(connection)
    assert said.startswith(b"HTTP/1.1 431 ")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert took_s < 4


def test_a_large_body_and_the_next_head_behind_it_are_no_large_head(narrow: tuple[str, int]) -> None:
    size = 2 * heads.MOST_BYTES
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n" % size
    with closing(socket.create_connection(narrow, timeout=5)) as connection:
        connection.sendall(request + b" " * size + WHOLE[:10])
        time.sleep(0.2)
        connection.sendall(WHOLE[10:])
        said = b""
        while b"HTTP/1.1 200 " not in said:
            said += connection.recv(4096)
    assert said.startswith(b"HTTP/1.1 400 ")


def test_serves_proxies_speak_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    monkeypatch.setattr(heads.TimelyProtocol, "most_connections", heads.TimelyProtocol.most_connections)
    proxy.middlewares()
    assert heads.TimelyProtocol.most_connections == 4096
    monkeypatch.setenv("TOKENDIAL_MAX_CONNECTIONS", "100")
    proxy.middlewares()
    assert heads.TimelyProtocol.most_connections == 100
    config = uvicorn.Config(create_app(ScriptedBackend(), Options()))
    config.load()
    assert config.http_protocol_class is heads.TimelyProtocol
    with running(create_app(ScriptedBackend(), Options())) as url:
        assert get(url, "/healthz")[0] == 200

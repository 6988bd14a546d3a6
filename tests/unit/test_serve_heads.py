"""Who is slow to send a request's head is hung up on; nobody else is."""

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress

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


def test_serves_proxies_speak_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    proxy.middlewares()
    config = uvicorn.Config(create_app(ScriptedBackend(), Options()))
    config.load()
    assert config.http_protocol_class is heads.TimelyProtocol
    with running(create_app(ScriptedBackend(), Options())) as url:
        assert get(url, "/healthz")[0] == 200

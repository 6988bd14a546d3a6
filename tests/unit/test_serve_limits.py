"""Bodies, headers and crowds over their limits are turned away before the backend hears of them."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from endpoint_lab import ScriptedBackend, chat, get, image, post, running
from tokendial.serve import ingress
from tokendial.serve.dial import Limits, data_image
from tokendial.serve.ingress import Options, create_app
from tokendial.serve.limits import Caps
from tokendial.serve.request import BadRequest
from tokendial.serve.schema import ImageUrl

CAPS = Caps(100_000, 0.5, max_reading=8, max_requests=16, max_held_bytes=250_000, max_header_bytes=4096)


@pytest.fixture(scope="module")
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture(scope="module")
def url(backend: ScriptedBackend) -> Iterator[str]:
    with running(create_app(backend, Options(caps=CAPS))) as address:
        yield address


def raw(url: str, head: str, body: bytes = b"") -> bytes:
    """The first bytes that come back for a request of one's own making."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode() + body)
        return connection.recv(65_536)


def test_a_body_over_the_cap_is_refused_by_its_announced_length(url: str, backend: ScriptedBackend) -> None:
    answer = raw(url, f"content-length: {CAPS.max_body_bytes + 1}")
    assert answer.startswith(b"HTTP/1.1 413")
    assert backend.requests == []


def test_zeros_before_an_announced_length_change_nothing(url: str) -> None:
    body = json.dumps(chat()).encode()
    assert raw(url, "content-length: " + "0" * 2000 + str(len(body)), body).startswith(b"HTTP/1.1 200")
    assert raw(url, "content-length: 1" + "0" * 18).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_over_the_cap_is_refused_as_it_comes(url: str) -> None:
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    answer = raw(url, "transfer-encoding: chunked", chunk * 4)
    assert answer.startswith(b"HTTP/1.1 413")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["param"] == "body"


def test_a_slow_body_is_given_up_in_time(url: str) -> None:
    began = time.monotonic()
    answer = raw(url, "content-length: 90000", b"{")
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 10 * CAPS.max_body_s


def test_large_headers_are_refused(url: str) -> None:
    status, answer, _ = post(url, chat(), **{"x-large": "x" * 5000})
    assert (status, answer["error"]["code"]) == (431, "size")


def test_stalled_bodies_do_not_keep_others_out(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    stalled = []
    for _ in range(CAPS.max_reading):
        connection = socket.create_connection((host, int(port)), timeout=10)
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        stalled.append(connection)
    time.sleep(0.1)
    status, answer, headers = post(url, chat())
    assert (status, answer["error"]["code"], headers["retry-after"]) == (429, "busy", "1")
    assert get(url, "/healthz")[0] == 200
    for connection in stalled:
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
        connection.close()
    assert post(url, chat())[0] == 200


def test_bodies_beyond_the_bytes_that_are_held_are_busy_until_others_end() -> None:
    caps = Caps(100_000, max_body_s=60, max_held_bytes=250_000)
    with running(create_app(ScriptedBackend(), Options(caps=caps))) as url:
        host, port = url.removeprefix("http://").split(":")
        begun = []
        for length in (b"content-length: 99000", b"transfer-encoding: chunked"):
            connection = socket.create_connection((host, int(port)), timeout=10)
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + length + b"\r\n\r\n")
            begun.append(connection)
        large = chat(text="x" * 60_000)
        deadline = time.monotonic() + 10
        while (found := post(url, large))[0] != 429:
            assert time.monotonic() < deadline
        _, answer, headers = found
        assert (answer["error"]["code"], headers["retry-after"]) == ("busy", "1")
        assert "bytes" in answer["error"]["message"]
        assert post(url, chat())[0] == 200, "a smaller one has room"
        for connection in begun:
            connection.close()
        while post(url, large)[0] == 429:
            assert time.monotonic() < deadline


def test_what_a_request_said_it_might_bring_is_let_go_once_it_is_there(url: str, backend: ScriptedBackend) -> None:
    begun = []
    for _ in range(4):
        backend.asleep.clear()
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        body = iter([json.dumps(chat(text="slow")).encode()])
        connection.request("POST", "/v1/chat/completions", body, encode_chunked=True)
        begun.append(connection)
        assert backend.asleep.wait(10)
    assert post(url, chat())[0] == 200
    for connection in begun:
        connection.close()


def test_requests_beyond_the_most_in_work_are_busy_and_the_others_are_served(
    url: str, backend: ScriptedBackend
) -> None:
    connections = []
    for _ in range(CAPS.max_requests):
        backend.asleep.clear()
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.request("POST", "/v1/chat/completions", json.dumps(chat(text="slow")))
        connections.append(connection)
        assert backend.asleep.wait(10)
    assert post(url, chat())[0] == 429
    assert get(url, "/v1/models")[0] == 429
    assert [get(url, path)[0] for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3, "who watches is answered"
    for connection in connections:
        connection.close()
    deadline = time.monotonic() + 10
    while post(url, chat())[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_many_bad_bodies_at_once_are_all_refused_and_none_is_a_fault(url: str) -> None:
    bodies = [
        b"",
        b"null",
        b"[" * 50_000,
        b"{}",
        b'{"model": 1}',
        b"\xff\xfe",
        b'{"a":' * 20_000,
        json.dumps("x").encode(),
    ]
    seen: list[int] = []

    def work(body: bytes) -> None:
        seen.extend(post(url, body)[0] for _ in range(10))

    threads = [threading.Thread(target=work, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80
    assert set(seen) <= {400, 429}


def test_a_large_image_is_decoded_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def noting(where: str, shown: ImageUrl) -> bytes:
        threads.append(bool(asyncio._get_running_loop()))
        return data_image(where, shown)

    monkeypatch.setattr(ingress, "data_image", noting)
    with running(create_app(ScriptedBackend(), Options())) as url:
        assert post(url, chat(image()))[0] == 200
        assert post(url, chat(image(content=bytes(ingress.APART_BYTES))))[0] == 200
        status, answer, _ = post(url, chat(image(), image(kind="text/plain", content=bytes(ingress.APART_BYTES))))
        assert (status, answer["error"]["param"]) == (400, "messages[0].content[1].image_url.url")
    assert threads == [True, False, True, False]


HOSTS = frozenset({"images.example.com"})


def by_url(*places: str) -> dict[str, object]:
    urls = [f"https://images.example.com/{place}" for place in places]
    return chat(*({"type": "image_url", "image_url": {"url": url}} for url in urls))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """The allowance of bytes and seconds of each fetch, of which each brings an image of 40 bytes."""
    told: list[tuple[int, float]] = []

    async def fetch(where: str, _url: str, _hosts: frozenset[str], most: int, timeout_s: float) -> bytes:
        told.append((most, timeout_s))
        await asyncio.sleep(0.05)
        if most < 40:
            raise BadRequest(f"{where}.url", f"the image has more than {most} bytes")
        return b"x" * 40

    monkeypatch.setattr(ingress, "fetch", fetch)
    return told


def test_images_by_url_share_an_allowance_of_bytes_and_of_seconds(fetched: list[tuple[int, float]]) -> None:
    backend = ScriptedBackend()
    with running(create_app(backend, Options(image_hosts=HOSTS, max_image_bytes=100))) as url:
        assert post(url, by_url("a", "b"))[0] == 200
        deadline = backend.requests[0].deadline
        assert deadline is not None
        assert deadline.left_s <= Limits().timeout_s - 0.1, "it runs while images are fetched"
        assert [most for most, _ in fetched] == [100, 60]
        assert fetched[1][1] <= fetched[0][1] - 0.05
        status, answer, _ = post(url, by_url("a", "b", "c"))
        assert (status, answer["error"]["param"]) == (400, "messages[0].content[2].image_url.url")


def test_nothing_is_fetched_for_more_images_than_are_allowed_or_can_be_held(fetched: list[tuple[int, float]]) -> None:
    caps = Caps(max_body_bytes=2000, max_held_bytes=2000)
    with running(create_app(ScriptedBackend(), Options(caps=caps, image_hosts=HOSTS, max_image_bytes=1500))) as url:
        status, answer, _ = post(url, by_url(*"abcde"))
        assert (status, answer["error"]["message"]) == (400, "5 images; at most 4 are allowed")
        assert fetched == []
        assert post(url, by_url("a"))[0] == 200
        assert post(url, chat(image()))[0] == 200
    with running(create_app(ScriptedBackend(), Options(caps=caps, image_hosts=HOSTS, max_image_bytes=2000))) as url:
        fetched.clear()
        assert post(url, by_url("a"))[0] == 429
        assert fetched == []

"""The endpoint on Ray Serve with a real model: the official client, bad images, lost replicas, changes of version."""

import http.client
import io
import json
import os
import signal
import socket
import struct
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from PIL import Image
from ray import serve
from serve_lab import SMALL, Traffic, asked, body, kept, model_folder, posted, source_of, write_golden
from served_model import COUNTS, offline_answers, picture, question
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.serve import hold
from tokendial.serve.application import Endpoint
from tokendial.serve.heads import HEAD_S
from tokendial.serve.keep import Keeper
from tokendial.serve.options import serve_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def endpoint(ray_cluster: str, folder: Path) -> Iterator[tuple[Keeper, str, list[str]]]:
    with kept(folder) as opened:
        yield opened
    serve.shutdown()


@pytest.fixture
def url(endpoint: tuple[Keeper, str, list[str]]) -> str:
    return endpoint[1]


def test_the_official_client_turns_the_dial_by_the_models_name_and_by_detail(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    [model] = client.models.list().data
    assert [row["count"] for row in model.model_dump()["ladder"]] == list(COUNTS)
    assert all(row["latency_ms"] > 0 for row in model.model_dump()["ladder"])
    messages: Any = body(picture())["messages"]
    answer = client.chat.completions.create(model="digits@16", messages=messages, max_completion_tokens=4)
    assert answer.usage is not None
    assert answer.usage.model_dump()["visual_tokens"] == 16
    assert answer.system_fingerprint == "digits/tiny0@16:asked"
    messages[0]["content"][0]["image_url"]["detail"] = "low"
    answer = client.chat.completions.create(model="digits", messages=messages, max_completion_tokens=4)
    assert answer.usage is not None
    assert answer.usage.model_dump()["visual_tokens_per_image"] == [COUNTS[0]]


def test_a_stream_says_the_same_as_the_whole_answer(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    document: Any = body(picture(1), "digits@4", max_tokens=12)
    whole = client.chat.completions.create(**document)
    chunks = list(client.chat.completions.create(**document, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}


def png(width: int, height: int, depth: int = 8, colour: int = 0, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + end


def encoded(form: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (40, 40)).save(file, form, **options)
    return file.getvalue()


BAD = {
    "truncated": picture()[:200],
    "text": b"hello",
    "no pixels": png(0, 0),
    "65k x 65k": png(65_535, 65_535),
    "bomb of few bytes": png(9459, 9459, data=b"\0" * (9460 * 9459)),
    "a sliver": png(1, 20_000, data=b"\0\0" * 20_000),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>',
    "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\ntrailer<<>>\n%%EOF",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    "tiff": encoded("TIFF"),
    "bmp": encoded("BMP"),
}
GOOD = {
    "jpeg in cmyk": encoded("JPEG", "CMYK"),
    "16-bit grey": encoded("PNG", "I;16"),
    "grey with alpha": encoded("PNG", "LA"),
    "palette": encoded("PNG", "P"),
    "animated": encoded("GIF", save_all=True, append_images=[Image.new("RGB", (40, 40), "red")]),
    "webp": encoded("WEBP"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_refused_by_its_field_and_nothing_breaks(url: str, kind: str) -> None:
    status, answer = posted(url, body(BAD[kind], "digits@4"))
    assert status == 400, answer
    error = json.loads(answer)["error"]
    assert error["param"] == "messages[0].content[0].image_url.url"
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize("kind", GOOD)
def test_an_odd_but_whole_image_is_answered(url: str, kind: str) -> None:
    assert asked(url, GOOD[kind], "digits@4")["usage"]["visual_tokens"] == 4


def test_a_wrong_mime_type_does_not_matter_as_content_decides(url: str) -> None:
    document = body(encoded("JPEG"), "digits@4", max_tokens=2)
    assert posted(url, document)[0] == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"visual_tokens": 5000}, "visual_tokens"),
        ({"max_tokens": 4000}, "max_tokens"),
        ({"max_completion_tokens": 4000}, "max_completion_tokens"),
        ({"slo": {"min_quality": 0.99}}, "slo.min_quality"),
        ({"model": "digits@99999"}, "model"),
    ],
)
def test_what_only_the_engine_can_judge_is_refused_by_field_too(url: str, fields: dict[str, Any], param: str) -> None:
    status, answer = posted(url, {**body(picture()), **fields})
    assert (status, json.loads(answer)["error"]["param"]) == (400, param)


def test_special_tokens_in_a_users_text_are_text(url: str) -> None:
    plain = asked(url, picture(), "digits@4")["usage"]["prompt_tokens"]
    status, answer = posted(url, body(picture(), "digits@4", "<image> <image> </s> what is a1", max_tokens=2))
    assert status == 200
    assert json.loads(answer)["usage"]["prompt_tokens"] > plain


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_frees_its_slot(url: str, stream: bool) -> None:
    def counted(outcome: str) -> int:
        [load] = loads(url)
        return load["counters"][outcome]

    # What is told of the load is up to 0.2 s old.
    time.sleep(0.3)
    accepted, cancelled = counted("accepted"), counted("cancelled")
    for number in range(1, 4):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        document = body(picture(), "digits@4", max_tokens=1000, stream=stream)
        connection.request("POST", "/v1/chat/completions", json.dumps(document))
        if stream:
            connection.getresponse().read(10)
        else:
            wait_until(lambda upto=accepted + number: counted("accepted") == upto, 5)
        connection.close()
    wait_until(lambda: counted("cancelled") == cancelled + 3, 5)
    [load] = loads(url)
    assert (load["running"], load["queued"]) == (0, 0)


def loads(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/load") as answer:
        return list(json.loads(answer.read())["replicas"].values())


@pytest.mark.slow
def test_a_killed_replica_loses_no_answer_and_ends_a_stream_with_an_error(url: str) -> None:
    with Traffic(url) as traffic:
        time.sleep(1)
        [load] = loads(url)
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        long = body(picture(), "digits@4", max_tokens=1000, stream=True)
        connection.request("POST", "/v1/chat/completions", json.dumps(long))
        stream = connection.getresponse()
        stream.read(10)
        os.kill(load["pid"], signal.SIGKILL)
        before = traffic.seen[200]
        deadline = time.monotonic() + 60
        while traffic.seen[200] < before + 10 and time.monotonic() < deadline:
            time.sleep(0.1)
    assert set(traffic.seen) == {200}
    assert traffic.seen[200] >= before + 10
    events = stream.read()
    connection.close()
    assert b"[DONE]" not in events
    assert json.loads(events.splitlines()[-2].removeprefix(b"data: "))["error"]["code"] == "lost"


@pytest.mark.slow
def test_versions_change_under_traffic_and_a_bad_one_never_serves(
    endpoint: tuple[Keeper, str, list[str]], folder: Path, tmp_path: Path
) -> None:
    keeper, url, said = endpoint
    better = model_folder(tmp_path, seed=1)
    nonsense, tampered = model_folder(tmp_path, seed=2), model_folder(tmp_path, seed=3)
    write_golden(folder, url)
    write_golden(nonsense, url)
    (tampered / "model.safetensors").write_bytes(b"nonsense")
    with Traffic(url) as traffic:
        for bad, why in ((nonsense, "as recorded"), (tampered, "SHA-256")):
            with pytest.raises(WorkFailed, match=why):
                keeper.change(source_of(bad), "mallory", "an experiment")
            assert "refused by mallory" in said[-1]
        bad_answers = traffic.seen.total()
        assert set(traffic.versions) == {"digits/tiny0"}
        keeper.change(source_of(better), "alice", "it is better")
        time.sleep(1)
    assert set(traffic.seen) == {200}
    assert set(traffic.versions) == {"digits/tiny0", "digits/tiny1"}
    assert bad_answers > 10
    assert any("promoted by alice" in line for line in said)
    now = asked(url, picture(5), "digits@16")["choices"][0]["message"]["content"]
    assert now == offline_answers(better)(question("what is a1", 16, image=5, new_tokens=4))


def test_a_second_keeper_on_the_same_cluster_is_refused_and_told_who_has_the_endpoint(
    endpoint: tuple[Keeper, str, list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "PATIENCE_S", 2.0)
    other = Endpoint(serve_settings(SMALL), None, ours=False)
    with pytest.raises(ConfigError, match=r"kept by .+, for digits tiny\d; end that one first"):
        Keeper(other, None, print).open(source_of(folder))
    other.give_up()
    assert asked(endpoint[1], picture(), "digits@4")["usage"]["visual_tokens"] == 4


@pytest.mark.slow
def test_a_killed_controller_loses_no_answer(url: str) -> None:
    with Traffic(url) as traffic:
        time.sleep(0.5)
        [controller] = named("ServeController")
        controller.kill()
        wait_until(lambda: [other.pid for other in named("ServeController")] not in ([], [controller.pid]), 60)
        before = traffic.seen[200]
        wait_until(lambda: traffic.seen[200] >= before + 10, 10)
    assert set(traffic.seen) == {200}


@pytest.mark.slow
def test_a_version_that_hangs_in_its_start_never_serves(
    endpoint: tuple[Keeper, str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, url, said = endpoint
    stuck = model_folder(tmp_path, seed=4)
    (stuck / "SHA256SUMS").unlink()
    # Whoever opens it for reading waits for a writer, who never comes.
    os.mkfifo(stuck / "SHA256SUMS")
    opened: Any = keeper
    short = opened._endpoint.settings.model_copy(update={"start_timeout_s": 6.0})
    monkeypatch.setattr(opened._endpoint, "settings", short)
    with Traffic(url) as traffic, pytest.raises(WorkFailed, match="not ready within 6 s"):
        keeper.change(source_of(stuck), "mallory", "an experiment")
    assert "refused by mallory" in said[-1]
    assert set(traffic.seen) == {200}
    assert len(traffic.versions) == 1
    assert asked(url, picture(), "digits@4")["usage"]["visual_tokens"] == 4


@pytest.mark.slow
def test_an_answer_that_has_started_may_take_longer_than_the_time_to_start(
    endpoint: tuple[Keeper, str, list[str]], folder: Path
) -> None:
    opened: Any = endpoint[0]
    settings = opened._endpoint.settings
    opened._endpoint.settings = settings.model_copy(update={"timeout_s": 0.5})
    opened.change(source_of(folder), "alice", "in a hurry to start")
    try:
        began = time.monotonic()
        status, answer = posted(endpoint[1], body(picture(), "digits@4", max_tokens=1000))
        assert status == 200, answer
        assert time.monotonic() - began > 0.6
    finally:
        opened._endpoint.settings = settings
        opened.change(source_of(folder), "alice", "in no hurry")


@pytest.mark.slow
def test_rays_proxy_hangs_up_on_a_head_that_does_not_come(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=4 * HEAD_S) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_bombs_do_not_grow_memory(url: str) -> None:
    asked(url, picture(), "digits@4")
    # A version that was dropped may still be ending.
    wait_until(lambda: len(named("ServeReplica")) == 2, 90)
    parts = {process.pid: process.cmdline()[0] for process in named("ServeReplica")}
    for pid in parts:
        # 5: the peak begins anew here.
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = {pid: memory_mib(pid, "VmRSS") for pid in parts}
    bombs = [BAD[kind] for kind in ("65k x 65k", "bomb of few bytes", "a sliver")] * 4
    with ThreadPoolExecutor(len(bombs)) as clients:
        assert {status for status, _ in clients.map(lambda bomb: posted(url, body(bomb, "digits@4")), bombs)} == {400}
    grown = {name: memory_mib(pid, "VmHWM") - before[pid] for pid, name in parts.items()}
    assert all(growth <= 64 for growth in grown.values()), grown


def named(part: str) -> list[psutil.Process]:
    """Ray's actors of this class in the session's cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        # Some end while the others are looked at.
        with suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith(f"ray::{part}"):
                found.append(process)
    return found


def memory_mib(pid: int, field: str) -> float:
    """A field of a process's memory, such as VmRSS (now) or VmHWM (its peak)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)

"""The endpoint over a scripted backend: OpenAI's shapes, the official client, errors, streams, keys, metrics."""

import http.client
import json
import re
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from endpoint_lab import COUNTS, PNG, ScriptedBackend, chat, get, image, post, running
from tokendial.metrics import SERVE
from tokendial.serve import ingress
from tokendial.serve.backend import Served
from tokendial.serve.ingress import Options, create_app
from tokendial.serve.keys import Key, KeyStore


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def ask(url: str, model: str = "scripted", *parts: dict[str, Any], **more: Any) -> Any:
    content: Any = [*parts, {"type": "text", "text": "what is it"}]
    return client(url).chat.completions.create(model=model, messages=[{"role": "user", "content": content}], **more)


def test_the_official_client_reads_an_answer_and_reaches_the_dial_without_extra_fields(url: str) -> None:
    answer = ask(url, "scripted@16", image())
    assert answer.choices[0].message.content == "what is it "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "scripted@16"
    assert answer.system_fingerprint == "scripted/7@16:asked"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == answer.usage.total_tokens
    assert (answer.usage.visual_tokens, answer.usage.expected_quality, answer.usage.reason) == (16, 0.75, "asked")


@pytest.mark.parametrize("how", ["create", "parse", "stream"])
def test_the_official_client_sends_an_answer_back_as_it_came(url: str, backend: ScriptedBackend, how: str) -> None:
    completions = client(url).chat.completions
    messages: list[Any] = [{"role": "user", "content": "what is it"}]
    if how == "stream":
        with completions.stream(model="scripted", messages=messages) as stream:
            answer = stream.get_final_completion()
    else:
        answer = getattr(completions, how)(model="scripted", messages=messages)
    messages += [answer.choices[0].message, {"role": "user", "content": "and then"}]
    second = completions.create(model="scripted", messages=messages)
    assert second.choices[0].message.content == "and then "
    assert [turn.parts for turn in backend.requests[-1].turns] == [("what is it",), ("what is it ",), ("and then",)]


def test_each_door_opens(url: str) -> None:
    by_detail = ask(url, "scripted", image("low"), image("high"), image("auto"))
    assert by_detail.usage.visual_tokens_per_image == [COUNTS[0], COUNTS[-1], COUNTS[-1]]
    by_field = ask(url, "scripted@16", image("low"), extra_body={"visual_tokens": 64})
    assert by_field.usage.visual_tokens_per_image == [64]


def test_headers_tell_what_the_dial_did(url: str) -> None:
    status, _, headers = post(url, chat(image(), image("low")))
    assert status == 200
    assert headers["x-tokendial-visual-tokens"] == "64,4"
    assert headers["x-tokendial-reason"] == "asked"
    assert headers["x-tokendial-expected-quality"] == "0.7500"
    assert headers["x-tokendial-version"] == "7"
    assert "prefill;dur=0.20" in headers["server-timing"]


def test_a_stream_is_the_same_answer_in_pieces_with_its_usage_last(url: str) -> None:
    chunks = list(ask(url, "scripted@4", image(), stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "what is it "
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert {chunk.system_fingerprint for chunk in chunks} == {"scripted/7@4:asked"}
    assert chunks[-1].usage.visual_tokens == 4
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_tells_its_count_in_the_headers(url: str) -> None:
    _, body, headers = post(url, chat(image(), model="scripted@4", stream=True))
    assert headers["x-tokendial-visual-tokens"] == "4"
    assert headers["x-tokendial-reason"] == "asked"
    assert headers["x-tokendial-expected-quality"] == "0.7500"
    assert "scripted/7@4:asked" in body.splitlines()[0]


def test_a_stream_that_loses_its_engine_ends_with_an_error_and_no_clean_end(url: str) -> None:
    status, body, _ = post(url, chat(text="one two lost three", stream=True))
    assert status == 200
    assert "[DONE]" not in body
    assert json.loads(body.strip().splitlines()[-1].removeprefix("data: "))["error"]["code"] == "lost"
    with pytest.raises(openai.APIError, match="lost"):
        list(
            client(url).chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "one lost"}], stream=True
            )
        )


def answers(url: str, code: int) -> float:
    """How many answers of a status the endpoint has counted."""
    line = rf'^tokendial_serve_requests_total\{{code="{code}",key="",model="scripted",process="\w+"\}} (.*)$'
    return sum(float(value) for value in re.findall(line, get(url, "/metrics")[1], re.MULTILINE))


def test_a_stream_whose_model_fails_ends_with_an_error_and_no_clean_end(url: str) -> None:
    before = answers(url, 500)
    status, body, _ = post(url, chat(text="one broken two", stream=True))
    assert status == 200
    deadline = time.monotonic() + 10
    while answers(url, 500) != before + 1:
        assert time.monotonic() < deadline, "an alert on errors must see it, though 200 was sent"
        time.sleep(0.02)
    assert "[DONE]" not in body
    told = json.loads(body.strip().splitlines()[-1].removeprefix("data: "))["error"]
    assert (told["code"], told["type"]) == ("failed", "server_error")
    assert "model" not in told["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_have_their_status_and_openais_shape_streamed_or_not(url: str, stream: bool) -> None:
    table: list[tuple[dict[str, Any], int, str | None]] = [
        (chat(text="busy", stream=stream), 429, None),
        (chat(text="bad", stream=stream), 400, "messages"),
        (chat(image(), visual_tokens=5, stream=stream), 400, "visual_tokens"),
        (chat(model="other", stream=stream), 404, "model"),
        (chat(model="scripted@", stream=stream), 400, "model"),
        (chat(tools=[], stream=stream), 400, "tools"),
        (chat(image(content=b""), stream=stream), 400, "messages[0].content[0].image_url.url"),
    ]
    for body, expected, param in table:
        status, answer, headers = post(url, body)
        assert (status, answer["error"]["param"]) == (expected, param)
        assert answer["error"].keys() == {"message", "type", "param", "code"}
        assert ("retry-after" in headers) == (expected == 429)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"visual_tokens": 5}, "visual_tokens"), ({"model": "scripted@5"}, "model"),
        ({"max_tokens": 2000}, "max_tokens"), ({"max_completion_tokens": 2000}, "max_completion_tokens"),
        ({"visual_tokens": 4, "slo": {"min_quality": 0.5}}, "slo"),
    ],
)  # fmt: skip
def test_what_the_engine_refuses_names_the_field_that_was_sent(url: str, fields: dict[str, Any], param: str) -> None:
    status, told, _ = post(url, chat(image(), **fields))
    assert (status, told["error"]["param"]) == (400, param)


def test_what_a_keys_floor_refuses_names_the_count(store: KeyStore) -> None:
    bearer = {"authorization": f"Bearer {store.add(Key('floor', min_quality=0.5))}"}
    with running(create_app(ScriptedBackend(), Options(), store)) as url:
        doors = ({"visual_tokens": 4}, {"model": "scripted@4"}, {"slo": {"min_quality": 0.1}}, {})
        told = [post(url, chat(image(), text="floor", **door), **bearer)[1]["error"]["param"] for door in doors]
    assert told == ["visual_tokens", "model", "slo.min_quality", "messages"]


@pytest.mark.parametrize(("word", "code"), [("gone", 503), ("broken", 500)])
def test_our_own_faults_are_counted_and_told_without_their_inside(url: str, word: str, code: int) -> None:
    before = answers(url, code)
    status, told, _ = post(url, chat(text=word))
    assert (status, told["error"]["type"]) == (code, "server_error")
    assert "stayed alive" not in str(told)
    assert "model" not in str(told)
    assert answers(url, code) == before + 1


def test_a_remote_image_is_refused_and_the_error_names_the_setting(url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    status, answer, _ = post(url, chat(part))
    assert status == 400
    assert "--allow-image-host" in answer["error"]["message"]
    assert answer["error"]["param"] == "messages[0].content[0].image_url.url"


def test_models_hold_the_ladder(url: str) -> None:
    [model] = client(url).models.list().data
    assert model.id == "scripted"
    ladder = model.model_dump()["ladder"]
    assert [(row["id"], row["count"]) for row in ladder] == [(f"scripted@{count}", count) for count in COUNTS]
    assert client(url).models.retrieve("scripted@16").id == "scripted"
    with pytest.raises(openai.NotFoundError):
        client(url).models.retrieve("other")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405), ("PUT", "/", 405)],
)
def test_unknown_routes_and_methods_answer_in_the_same_shape(url: str, method: str, path: str, status: int) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request(method, path)
    answer = connection.getresponse()
    assert answer.status == status
    assert "message" in json.loads(answer.read())["error"]
    connection.close()


def test_health_readiness_load_and_the_page_answer(url: str) -> None:
    assert get(url, "/healthz")[0] == get(url, "/readyz")[0] == 200
    assert get(url, "/load")[1]["replicas"]["a"]["level"] == 1
    status, page, headers = get(url, "/")
    assert status == 200
    assert "<!doctype html>" in page.lower()
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/models", "/"])
def test_what_is_read_answers_a_head_request_without_a_body(url: str, path: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("HEAD", path)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    connection.close()


def test_every_snippet_of_the_page_has_a_place_for_the_key_that_is_asked_for(url: str) -> None:
    page = get(url, "/")[1]
    snippets = page[page.index("const SNIPPETS") : page.index("function snippet()")]
    for place in ("authorization: Bearer KEY", 'keyed ? "KEY" : "none"', 'authorization: "Bearer KEY"'):
        assert place in snippets


def test_every_series_of_the_one_list_is_exposed(url: str) -> None:
    post(url, chat(image()))
    text = get(url, "/metrics")[1]
    for series in SERVE:
        name = series.name + "_total" if series.kind == "counter" else series.name
        assert f"# TYPE {series.name}" in text or f"# TYPE {name}" in text
    assert 'tokendial_serve_images_total{count="64",model="scripted",process="' in text
    assert 'tokendial_serve_agreement_ratio{count="4",model="scripted",replica="a"} 0.9' in text


def test_the_guide_names_every_route(url: str) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    table = guide[guide.index("| route | |") : guide.index("429 with")]
    for path in get(url, "/openapi.json")[1]["paths"]:
        assert f"{path.replace('{name}', 'NAME')}`" in table, path


def test_the_openapi_document_describes_the_chat_request(url: str) -> None:
    document = get(url, "/openapi.json")[1]
    assert document["components"]["schemas"]["ChatRequest"]["additionalProperties"] is False
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].endswith("/ChatRequest")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_work(url: str, backend: ScriptedBackend, stream: bool) -> None:
    before = backend.cancelled
    backend.asleep.clear()
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", "/v1/chat/completions", json.dumps(chat(text="a slow one", stream=stream)))
    assert backend.asleep.wait(10)
    connection.close()
    deadline = time.monotonic() + 5
    while backend.cancelled == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert backend.cancelled == before + 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_version_that_changes_while_an_image_is_fetched_is_the_one_that_is_asked_and_told(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Changing(ScriptedBackend):
        now = ScriptedBackend().served()

        def served(self) -> Served:
            return self.now

    backend = Changing()

    async def fetch(*_: Any, **__: Any) -> bytes:
        backend.now = replace(backend.now, version="8", rungs=backend.now.rungs[1:])
        return PNG

    monkeypatch.setattr(ingress, "fetch", fetch)
    remote = {"type": "image_url", "image_url": {"url": "https://images.example.com/a.png", "detail": "low"}}
    with running(create_app(backend, Options(image_hosts=frozenset({"images.example.com"})))) as url:
        status, answer, headers = post(url, chat(remote, stream=stream))
        assert (status, headers["x-tokendial-version"], headers["x-tokendial-visual-tokens"]) == (200, "8", "16")
        assert "scripted/8@16:asked" in (answer.splitlines()[0] if stream else answer["system_fingerprint"])
        assert post(url, chat(remote, model="scripted/8"))[0] == 200
        assert post(url, chat(remote, model="scripted/7"))[0] == 404


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.db")


def test_a_key_is_needed_its_terms_hold_and_its_usage_is_written_down(store: KeyStore) -> None:
    backend = ScriptedBackend()
    secret = store.add(Key("alice", min_quality=0.7, may_bend=True, priority=4))
    with running(create_app(backend, Options(), store)) as url:
        assert post(url, chat())[0] == 401
        assert post(url, chat(), authorization="Bearer td-wrong")[0] == 401
        assert post(url, chat(), authorization=f"Basic {secret}")[0] == 401
        assert get(url, "/v1/models")[0] == get(url, "/metrics")[0] == get(url, "/load")[0] == 401
        assert get(url, "/healthz")[0] == get(url, "/readyz")[0] == get(url, "/")[0] == 200
        assert backend.requests == []
        assert post(url, chat(image("low"), text="a b"), authorization=f"Bearer {secret}")[0] == 200
        assert client(url, secret).models.list().data[0].id == "scripted"
        [request] = backend.requests
        assert (request.may_bend, request.min_quality, request.priority) == (True, 0.7, 4)
        store.revoke("alice")
        assert post(url, chat(), authorization=f"Bearer {secret}")[0] == 401
    [(_, usage)] = store.list()
    assert (usage.requests, usage.images, usage.visual_tokens, usage.completion_tokens) == (1, 1, 4, 2)


def test_a_stream_that_is_left_before_its_end_is_usage_too(store: KeyStore) -> None:
    bearer = {"authorization": f"Bearer {store.add(Key('alice'))}"}
    with running(create_app(ScriptedBackend(), Options(), store)) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        body = chat(image("low"), text="one two slow", stream=True)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), bearer)
        answer = connection.getresponse()
        while b'"two ' not in answer.readline():
            pass
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        deadline = time.monotonic() + 10
        while (used := store.list()[0][1]).requests == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert (used.requests, used.images, used.visual_tokens, used.completion_tokens) == (1, 1, 4, 2)


def test_a_rate_is_held_and_the_refusal_says_when_to_try_again(store: KeyStore) -> None:
    secret = store.add(Key("alice", rate_per_s=2))
    with running(create_app(ScriptedBackend(), Options(), store)) as url:
        statuses = [post(url, chat(), authorization=f"Bearer {secret}") for _ in range(5)]
        assert [status for status, _, _ in statuses[:2]] == [200, 200]
        status, answer, headers = statuses[-1]
        assert (status, answer["error"]["code"], headers["retry-after"]) == (429, "rate", "1")

"""An endpoint that follows an alias, and what it traces: registry, golden prompts from the run, MLflow's own store."""

import json
import os
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow import MlflowClient
from ray import serve
from serve_lab import SMALL, asked, model_folder, write_golden
from served_model import picture
from tokendial import api, runs
from tokendial.experiments import ConfigError
from tokendial.results import read_examples
from tokendial.serve.backend import Served, Whole
from tokendial.serve.request import Ask, Done, Sampling, ServeRequest, Turn
from tokendial.serve.start import OpenEndpoint
from tokendial.tracking import golden, resolve_uri, traces
from tokendial.tracking.registry import move_alias, register
from tokendial.tracking.traces import Tracer


@pytest.fixture(autouse=True)
def _mlflow_forgets_the_address() -> Iterator[None]:
    """`mlflow.set_tracking_uri` writes it into the environment, where runs of later tests would find it."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="module")
def uri() -> str:
    return resolve_uri(None, runs.home())


REQUEST = ServeRequest("r", (Turn("user", (0, "q")),), (b"image",), (Ask(16),), Sampling(4), may_bend=True)
STAGES = {"queue": 1.0, "image": 2.0, "encode": 3.0, "prefill": 4.0, "decode": 5.0, "total": 15.0}
WHOLE = Whole("a", Done("stop", 20, 2, (16,), (64,), 0.9, "bent", STAGES))


def test_a_trace_holds_counts_reason_and_where_the_time_went_but_no_image_and_no_text(uri: str) -> None:
    tracer = Tracer(uri, "serve.traced", share=1.0)
    tracer(REQUEST, WHOLE, Served("digits", "7", "accuracy", 0, ()), "alice")
    tracer.close()
    assert tracer.dropped == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("serve.traced")
    assert experiment is not None
    mlflow.set_tracking_uri(uri)
    [trace] = client.search_traces(locations=[experiment.experiment_id])
    spans = {span.name: span for span in trace.data.spans}
    assert set(spans) == {"chat completion", "queue", "image", "encode", "prefill", "decode"}
    ended_ns = spans["prefill"].end_time_ns
    assert ended_ns is not None
    assert (ended_ns - spans["prefill"].start_time_ns) / 1e6 == pytest.approx(4.0)
    root = spans["chat completion"]
    assert root.outputs["visual_tokens"] == [16]
    assert root.outputs["wanted_tokens"] == [64]
    assert (trace.info.tags["reason"], trace.info.tags["version"], trace.info.tags["key"]) == ("bent", "7", "alice")
    assert [len(digest) for digest in root.inputs["images"]] == [64]


def test_traces_never_wait_for_a_server_that_is_away() -> None:
    tracer = Tracer("http://127.0.0.1:9", "serve.away", share=1.0)
    began = time.monotonic()
    for _ in range(1000):
        tracer(REQUEST, WHOLE, Served("digits", "7", "accuracy", 0, ()), "")
    assert time.monotonic() - began < 1.0
    tracer.close()
    assert tracer.dropped == 1000


def test_traces_to_a_server_that_goes_away_later_are_dropped_and_counted_too(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Exception | None] = [None, ConnectionError("away"), None]

    def probe(_: str) -> None:
        if (error := answers.pop(0)) is not None:
            raise error

    monkeypatch.setattr(traces, "probe", probe)
    monkeypatch.setattr(Tracer, "_send", lambda *_: None)
    tracer = Tracer(uri, "serve.later", share=1.0)
    for _ in range(3):
        tracer(REQUEST, WHOLE, Served("digits", "7", "accuracy", 0, ()), "")
    tracer.close()
    assert (tracer.dropped, answers) == (2, [None]), "one that failed, and one of the minute after it"


@pytest.fixture(scope="module")
def followed(ray_cluster: str, uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenEndpoint]:
    """An endpoint that follows the champion of `eyes`, whose first version it serves."""
    folder = tmp_path_factory.mktemp("registry")
    for seed in (0, 1, 2):
        register(uri, "eyes", model_folder(folder, seed), None, {})
    move_alias(uri, "eyes", 1, "alice", "first")
    with api.serve("eyes", [*SMALL, "trace_share=1"], say=lambda _: None) as endpoint:
        yield endpoint
    serve.shutdown()


def counted_changes(url: str) -> dict[tuple[str, str], float]:
    """How often versions changed, by outcome and endpoint process."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r'^tokendial_serve_model_changes_total\{outcome="(\w+)",process="(\w+)"\} (.*)$', text, re.M)
    return {(outcome, process): float(value) for outcome, process, value in found}


def endpoint_processes() -> list[int]:
    children = psutil.Process().children(recursive=True)
    return [each.pid for each in children if "ServeReplica:tokendial:endpoint" in " ".join(each.cmdline())]


@pytest.mark.slow
def test_the_alias_is_followed_and_a_version_that_answers_otherwise_is_refused(
    followed: OpenEndpoint, uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert followed.about["version"] == "1"
    url = followed.url
    assert asked(url, picture(), "eyes@16")["system_fingerprint"].startswith("eyes/1@16")
    followed.look()
    assert asked(url, picture(), "eyes@16")["system_fingerprint"].startswith("eyes/1@16")
    [pid] = endpoint_processes()
    [(_, process), _] = counted_changes(url)
    move_alias(uri, "eyes", 2, "bob", "second")
    followed.look()
    assert asked(url, picture(), "eyes@16")["system_fingerprint"].startswith("eyes/2@16")
    # What version 2 answers is recorded as what version 3 should have: it answers otherwise.
    own = tmp_path / "run" / "model"
    own.mkdir(parents=True)
    write_golden(own, url, model="eyes")
    recorded = read_examples(own.parent / "tracking" / "examples.json")
    monkeypatch.setattr(golden, "golden_examples", lambda *_: recorded)
    move_alias(uri, "eyes", 3, "mallory", "third")
    followed.look()
    assert asked(url, picture(), "eyes@16")["system_fingerprint"].startswith("eyes/2@16")
    log = runs.home() / "served" / "changes.jsonl"
    changes = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    told = [(change["version"], change["outcome"], change["by"]) for change in changes if change["model"] == "eyes"]
    assert told[1:] == [("2", "promoted", "bob"), ("3", "refused", "mallory")]
    assert endpoint_processes() == [pid]
    assert counted_changes(url) == {("promoted", process): 1, ("refused", process): 1}


@pytest.mark.slow
def test_answers_are_traced_to_the_version_that_gave_them(followed: OpenEndpoint, uri: str) -> None:
    asked(followed.url, picture(9), "eyes@4")
    client = MlflowClient(uri)
    deadline = time.monotonic() + 30
    found = []
    while not found and time.monotonic() < deadline:
        experiment = client.get_experiment_by_name("serve.eyes")
        found = client.search_traces(locations=[experiment.experiment_id]) if experiment else []
        time.sleep(0.2)
    version = followed.about["version"]
    bound = {trace.info.trace_metadata.get("mlflow.modelId") for trace in found}
    assert client.get_model_version("eyes", version).model_id in bound


def test_a_name_that_several_models_could_be_meant_by_must_be_given(uri: str, tmp_path: Path) -> None:
    for name in ("left", "right"):
        register(uri, name, model_folder(tmp_path / name, seed=4), None, {})
        move_alias(uri, name, 1, "alice", "first")
    with pytest.raises(ConfigError, match="left"):
        api.serve()

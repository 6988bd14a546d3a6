"""The RayService's own Serve configuration on a real cluster with the pods' environment: deployed, asked, watched."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs_lab import ROOT, Place, environment, free_ports, local_cluster
from prometheus_lab import OPENER, collect, prometheus, queries
from tokendial.bench.cluster import serve_rest, wait_for_endpoint
from tokendial.serve.application import CLUSTER_ENVIRONMENT
from tokendial.serve.keys import Key, KeyStore

sys.path.insert(0, str(ROOT / "tests" / "unit"))
from served_model import export_model, picture

pytestmark = pytest.mark.slow
SMALL = ["engine.slots=2", "engine.threads=1", "replicas.cpus=0.5", "replicas.most=1", "may_bend=true"]
BENDING = ["engine.target_ms=1", "engine.replay_share=1"]
START_S = 180


class Service:
    """The application on a cluster, and a client with a key."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place, self.port = place, free_ports(1)[0]
        text = (ROOT / "clusters" / "kuberay" / "service.yaml").read_text()
        self.config: dict[str, Any] = yaml.safe_load(yaml.safe_load(text)["spec"]["serveConfigV2"])
        self.config["http_options"] = {"host": "127.0.0.1", "port": self.port}
        self.config["proxy_location"] = "HeadOnly"
        self.config["applications"][0]["args"] = {"model": str(folder), "settings": [*SMALL, *BENDING]}
        self.secret = KeyStore(place.home / "keys.db").add(Key("app", None, None, True, 0))

    def ask(self, image: bytes, **fields: Any) -> int:
        from serve_lab import body

        headers = {"authorization": f"Bearer {self.secret}", "content-type": "application/json"}
        content = json.dumps(body(image, max_tokens=8, **fields)).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/chat/completions", content, headers)
        try:
            with OPENER.open(request, timeout=60) as answer:
                answer.read()
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def engines(self) -> set[str]:
        return {name for name in serve_rest(self.place, "GET")["applications"] if name.startswith("tokendial-engine-")}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = export_model(tmp_path_factory.mktemp("served") / "model")
    with local_cluster(cpus=2, rocksdb=False, RAY_metrics_report_interval_ms="1000", **CLUSTER_ENVIRONMENT) as place:
        place.home.mkdir(exist_ok=True)
        with environment(place.environment):
            service = Service(place, folder)
        serve_rest(service.place, "PUT", service.config)
        wait_for_endpoint(service.place, START_S)
        yield service


def test_the_declared_endpoint_answers_with_a_key_and_refuses_without(service: Service) -> None:
    assert service.ask(picture(1)) == 200
    right, service.secret = service.secret, "wrong"
    try:
        assert service.ask(picture(1)) == 401
    finally:
        service.secret = right


def test_every_panel_of_serving_has_data(service: Service, tmp_path: Path) -> None:
    done = threading.Event()

    def load(number: int) -> None:
        count = 0
        while not done.is_set():
            count += 1
            fields = {"stream": True} if count % 3 == 0 else {}
            service.ask(picture(number * 1000 + count), **fields)
            if count % 7 == 0:
                service.ask(picture(0), visual_tokens=7)

    threads = [threading.Thread(target=load, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    try:
        discovery = service.place.home.parent / "ray" / "prom_metrics_service_discovery.json"
        with prometheus(tmp_path, discovery, f"127.0.0.1:{service.port}", key=service.secret) as address:
            wanted = dict(queries("serving"))
            # Counts that are barred: here none is, for which answers to it have to disagree.
            del wanted["serving: Counts that are bent to B"]
            missing = collect(address, wanted, lambda: True, 120)
        assert missing == set(), "panels without data"
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_changed_configuration_takes_over_with_no_request_lost_and_a_removed_one_leaves_nothing(
    service: Service,
) -> None:
    before = service.engines()
    assert len(before) == 1
    # Of the keeper's arguments, an engine's, and an endpoint process's: all three are started anew.
    service.config["applications"][0]["args"]["settings"] += ["engine.max_queue=64", "new_tokens=32"]
    seen: Counter[int | str] = Counter()
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            try:
                seen[service.ask(picture(seen.total()))] += 1
            except OSError as error:
                seen[type(error).__name__] += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        serve_rest(service.place, "PUT", service.config)
        deadline = time.monotonic() + START_S
        while len(now := service.engines()) != 1 or now == before:
            assert time.monotonic() < deadline, now
            time.sleep(0.5)
        wait_for_endpoint(service.place, START_S)
        so_far = seen.total()
        while seen.total() < so_far + 5:
            time.sleep(0.1)
    finally:
        done.set()
        thread.join()
    assert set(seen) == {200}
    serve_rest(service.place, "PUT", {**service.config, "applications": []})
    deadline = time.monotonic() + 90
    while left := serve_rest(service.place, "GET")["applications"]:
        assert time.monotonic() < deadline, sorted(left)
        time.sleep(0.5)

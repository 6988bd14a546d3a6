"""The head of a cluster is killed under a steady load and comes back; its state was stored. Which requests fail?

Two nodes on this machine, as the RayService has them: a head that does no work, and a node with the replicas. Clients
connect to that node's proxy, as the RayService's own service does (`excludeHeadPodFromServeSvc`).
"""

from __future__ import annotations

import http.client
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil

from tokendial.bench.cluster import (
    Place,
    add_node,
    environment,
    free_ports,
    kill_node,
    local_cluster,
    restart_head,
    serve_rest,
    wait_for_endpoint,
)
from tokendial.bench.open_loop import chat, noise
from tokendial.bench.records import Row, single
from tokendial.bench.untrained import digits_model
from tokendial.serve.keys import Key, KeyStore

CLIENTS = 4
RATE = 10.0
TIMEOUT_S = 60.0
START_S = 240.0
SETTINGS = ("engine.slots=4", "engine.threads=1", "engine.governor=off", "replicas.cpus=0.5", "replicas.most=1")
# As KubeRay sets it where the head's state is stored; Ray's default is 60 s.
PATIENCE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}


def head_rows(scripts: Path, folder: Path, requests: int) -> list[Row]:
    """The head is killed after a quarter of the requests and started again at once."""
    model = digits_model(folder / "model")
    with local_cluster(scripts, cpus=0, rocksdb=True, **PATIENCE) as place:
        node = add_node(place, cpus=2)
        service = Service(place, node, model)
        serve_rest(place, "PUT", service.config)
        wait_for_endpoint(place, START_S)
        load = Load(service, requests)
        load.until(requests // 4)
        began = time.monotonic()
        kill_node(place.nodes[0])
        restart_head(place)
        away_s = time.monotonic() - began
        load.until(requests)
        load.join()
        wait_for_endpoint(place, START_S)
    late = quantiles(load.latencies_ms, n=100)[98]
    setting = f"{requests} not streamed at {RATE:g}/s, {CLIENTS} clients; the head away for {away_s:.0f} s"
    return [
        single("requests that failed", setting, load.failed / requests, "share", 0.0, num_samples=requests),
        single("latency, p99", setting, late, "ms", num_samples=requests),
        single("latency, worst", setting, max(load.latencies_ms), "ms", num_samples=requests),
    ]


class Service:
    """The application that the RayService declares, and connections to it with a key."""

    def __init__(self, place: Place, node: subprocess.Popen[bytes], model: Path) -> None:
        self._node = node
        self.port = free_ports(1)[0]
        place.home.mkdir(exist_ok=True)
        with environment(place.environment):
            self.secret = KeyStore(place.home / "keys.db").add(Key("bench", None, None, True, 0))
        self.config: dict[str, Any] = {
            "proxy_location": "EveryNode",
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [
                {
                    "name": "tokendial-keeper",
                    "route_prefix": None,
                    "import_path": "tokendial.serve.declared:build",
                    "args": {"model": str(model), "settings": [*SETTINGS]},
                }
            ],
        }

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """A connection that the node's proxy accepted; both proxies share the port on one machine."""
        proxy = self._proxy()
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
            connection.connect()
            ours = connection.sock.getsockname()[1]
            time.sleep(0.05)
            if any(one.raddr and one.raddr.port == ours for one in proxy.net_connections("tcp")):
                break
            connection.close()
        try:
            yield connection
        finally:
            connection.close()

    def _proxy(self) -> psutil.Process:
        below = psutil.Process(self._node.pid).children(recursive=True)
        return next(one for one in below if one.cmdline()[:1] and one.cmdline()[0].startswith("ray::ProxyActor"))


class Load:
    """Requests at a steady rate over connections kept open; one that breaks counts as failed and is opened anew."""

    def __init__(self, service: Service, requests: int) -> None:
        self._service, self._requests = service, requests
        self._began = time.monotonic()
        self._next = iter(range(requests))
        self._lock = threading.Lock()
        self.failed, self.latencies_ms = 0, list[float]()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def until(self, number: int) -> None:
        """Wait until so many were answered or failed."""
        while self.failed + len(self.latencies_ms) < number and any(one.is_alive() for one in self._threads):
            time.sleep(0.05)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        headers = {"authorization": f"Bearer {self._service.secret}", "content-type": "application/json"}
        number: int | None = self._draw()
        while number is not None:
            with self._service.connection() as connection:
                while number is not None:
                    time.sleep(max(0.0, self._began + number / RATE - time.monotonic()))
                    answered = self._ask(connection, number, headers)
                    number = self._draw()
                    if not answered:
                        break

    def _draw(self) -> int | None:
        with self._lock:
            return next(self._next, None)

    def _ask(self, connection: http.client.HTTPConnection, number: int, headers: dict[str, str]) -> bool:
        body = chat(noise(number), "digits", 4)
        began = time.perf_counter()
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            self.failed += 1
            return False
        if answer.status != 200:
            self.failed += 1
        else:
            self.latencies_ms.append(1e3 * (time.perf_counter() - began))
        return True

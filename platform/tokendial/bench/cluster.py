"""A real Ray cluster on loopback that asks for a token, started by the scripts in clusters/local; and its clients."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import psutil

from tokendial.failures import WorkFailed
from tokendial.jobs import Cluster
from tokendial.jobs.cluster import Unreachable

START_S = 90
COMMAND_S = 300


@dataclass(frozen=True)
class Said:
    """What a finished command left."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The last line of stdout as JSON."""
        return json.loads(self.out.strip().splitlines()[-1])


def finished(process: subprocess.Popen[str], timeout_s: float = COMMAND_S) -> Said:
    """What a command said, once it has ended; it is killed where it does not end in time."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return Said(process.returncode, out, err)


@dataclass
class Place:
    """A running cluster: its dashboard, its token file, where its runs live, and what its processes were told."""

    scripts: Path
    url: str
    port: int
    home: Path
    token: Path
    environment: dict[str, str]
    head: tuple[str, ...] = ()
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def client(self, laptop: Path, **more: str) -> dict[str, str]:
        """The environment of a laptop that has the token and a runs folder of its own."""
        own = {"TOKENDIAL_HOME": str(laptop / "runs"), "RAY_AUTH_TOKEN_PATH": str(self.token), "COLUMNS": "200"}
        kept = {name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_MODE", "RAY_ADDRESS")}
        return {**kept, **own, **more}

    def start(self, laptop: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """`tokendial ARGUMENTS` on the laptop."""
        return subprocess.Popen(
            [sys.executable, "-m", "tokendial", *arguments],
            env=self.client(laptop, **more),
            cwd=laptop,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def say(self, laptop: Path, *arguments: str, **more: str) -> Said:
        return finished(self.start(laptop, *arguments, **more))


@contextmanager
def local_cluster(scripts: Path, cpus: int = 2, rocksdb: bool = False, **environment: str) -> Iterator[Place]:
    """The cluster of head.sh in `scripts` (the repository's clusters/local) on free ports; all it started ends with it.

    With `rocksdb` its state survives the head, as KubeRay's `gcsFaultToleranceOptions` have it.
    """
    folder = Path(tempfile.mkdtemp(prefix="td-", dir="/tmp"))
    ports = free_ports(9)
    if rocksdb:
        environment |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}
    place = Place(
        scripts=scripts,
        url=f"http://127.0.0.1:{ports[1]}",
        port=ports[0],
        home=folder / "runs",
        token=folder / "token",
        environment={
            **{name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_MODE", "RAY_ADDRESS")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "TOKENDIAL_HOME": str(folder / "runs"),
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "PORT": str(ports[0]),
            "DASHBOARD_PORT": str(ports[1]),
            # Told to end, `ray start` would wait up to 30 s until its node is drained.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            **environment,
        },
    )
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(_end, place.nodes)
        options = _options(cpus, ports[2:], f"--ray-client-server-port={ports[8]}", f"--temp-dir={folder / 'ray'}")
        place.head = tuple(options)
        _wait(place, _node(place, "head.sh", options))
        yield place


def add_node(place: Place, cpus: int = 1) -> subprocess.Popen[bytes]:
    """A second node by worker.sh; returns once the cluster counts it."""
    node = _node(
        place, "worker.sh", _options(cpus, free_ports(6), f"--temp-dir={place.home.parent / f'ray-{len(place.nodes)}'}")
    )
    deadline = time.monotonic() + START_S
    running = sum(one.poll() is None for one in place.nodes)
    while _alive(place) < running:
        if node.poll() is not None or time.monotonic() > deadline:
            raise WorkFailed(f"the node did not join:\n{(place.home.parent / 'worker.sh.log').read_text()}")
        time.sleep(0.2)
    return node


def _alive(place: Place) -> int:
    """Nodes that the head takes to be alive."""
    nodes = _asked(place, "GET", "/nodes?view=summary")["data"]["summary"]
    return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)


def serve_rest(place: Place, method: str, document: Any = None) -> Any:
    """Serve's REST interface, which KubeRay uses."""
    return _asked(place, method, "/api/serve/applications/", document)


def wait_for_endpoint(place: Place, patience_s: float) -> None:
    """Until Serve says that the endpoint which was declared is healthy."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            found = serve_rest(place, "GET")["applications"].get("tokendial-keeper", {})
        except (OSError, http.client.HTTPException):
            # A dashboard that is just starting.
            found = {}
        if found.get("status") == "RUNNING":
            return
        if found.get("status") == "DEPLOY_FAILED" or time.monotonic() > deadline:
            raise WorkFailed(f"the endpoint did not start: {json.dumps(found)[-600:]}")
        time.sleep(0.5)


def _asked(place: Place, method: str, path: str, document: Any = None) -> Any:
    """What the dashboard answers to the cluster's token."""
    headers = {"Authorization": f"Bearer {place.token.read_text().strip()}", "Content-Type": "application/json"}
    body = None if document is None else json.dumps(document).encode()
    request = Request(place.url + path, body, headers, method=method)
    with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def raylet(node: subprocess.Popen[bytes]) -> int:
    """The process id of a node's raylet."""
    found = [child for child in psutil.Process(node.pid).children(recursive=True) if child.name() == "raylet"]
    assert len(found) == 1, found
    return found[0].pid


def kill_node(node: subprocess.Popen[bytes]) -> None:
    """Every process of a node at once, as when its machine loses power."""
    for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    node.wait()


def restart_head(place: Place) -> None:
    """The head again, at the same ports, as its supervisor does it."""
    # Beside a second node, `ray start` would take that node's processes for a head at the address in this file.
    (place.home.parent / "ray" / "ray_current_cluster").unlink(missing_ok=True)
    _wait(place, _node(place, "head.sh", place.head))


def free_ports(number: int) -> list[int]:
    """Free ports of a range that systems give to nobody who asks for any, so they still are when they are used."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < number:
            port = secrets.choice(range(20_000, 32_768))
            with suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    return found


def _options(cpus: int, ports: Sequence[int], *more: str) -> list[str]:
    names = (
        "node-manager-port", "object-manager-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
        "runtime-env-agent-port", "metrics-export-port",
    )  # fmt: skip
    chosen = [f"--{name}={port}" for name, port in zip(names, ports, strict=False)]
    return [*chosen, f"--num-cpus={cpus}", f"--object-store-memory={100 << 20}", *more]


def _node(place: Place, script: str, options: Sequence[str]) -> subprocess.Popen[bytes]:
    folder = place.home.parent
    with (folder / f"{script}.log").open("ab") as log:
        node = subprocess.Popen(
            [str(place.scripts / script), *options],
            env=place.environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    place.nodes.append(node)
    return node


def _wait(place: Place, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        if head.poll() is not None or time.monotonic() > deadline:
            raise WorkFailed(f"the cluster did not start:\n{(place.home.parent / 'head.sh.log').read_text()}")
        if place.token.exists():
            try:
                with environment(place.client(place.home.parent)):
                    Cluster(place.url).jobs()
                return
            except Unreachable:
                pass
        time.sleep(0.2)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """This process as a client: its environment replaced for a while."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _end(nodes: list[subprocess.Popen[bytes]]) -> None:
    """Each node's whole session: `ray start --block` and the servers below it."""
    for node in reversed(nodes):
        if node.poll() is None:
            node.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                node.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()

"""The endpoint on Ray Serve: endpoint processes in front, engine replicas of one version behind.

Each version is an application of its own, without a route; the endpoint is told which one answers. A version is changed
by starting the new one beside the old, checking it, telling the endpoint, and letting the old one finish its answers.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import re
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig, HTTPOptions, ProxyLocation
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.serve.dial import Limits, Terms
from tokendial.serve.endpoint import EndpointReplica, Traces
from tokendial.serve.ingress import Options
from tokendial.serve.limits import Caps
from tokendial.serve.options import ServeSettings
from tokendial.serve.replica import EngineReplica
from tokendial.serve.source import Source

ENDPOINT = "tokendial"
QUIET = LoggingConfig(log_level="ERROR", enable_access_log=False)

# Of a cluster that is started here; on another it is the operator's to set.
CLUSTER_ENVIRONMENT = {
    # Ray's default, 10 s, is long for a queue that fills in one.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    # The model has a thread of its own, so nothing here stops an event loop: one loop a process saves two hops a call.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # One message each way for a call, where Ray's actor calls take four.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "tokendial.serve.proxy:middlewares",
}


@dataclass(frozen=True)
class Running:
    """A version that was started: its application, and the handle to its replicas."""

    source: Source
    application: str
    handle: DeploymentHandle[Any]
    examples: Sequence[Mapping[str, str]] = ()


class Endpoint:
    """Serve in this cluster, from the process that keeps it: start versions, switch to one, drop one, close."""

    def __init__(self, settings: ServeSettings, keys: str | None, ours: bool, tracking_uri: str | None = None) -> None:
        """`keys` is the key store's file where keys are asked for; `ours`: the cluster was started for this.

        `tracking_uri` is where traces go to; None: nowhere.
        """
        self._tracking_uri = tracking_uri
        self.settings = settings
        self._keys, self._ours = keys, ours
        self._applications: set[str] = set()
        self._numbers = itertools.count(1)
        self._port = settings.port

    @property
    def url(self) -> str:
        """Where the endpoint listens."""
        host = "localhost" if self.settings.on_loopback else self.settings.host
        return f"http://{host}:{self._port}"

    def open(self) -> None:
        """Start Serve's controller and proxy; raises ConfigError where the port is taken."""
        self._port = free_port(self.settings.host, self.settings.port)
        place = ProxyLocation.HeadOnly if self.settings.on_loopback else ProxyLocation.EveryNode
        options = HTTPOptions(host=self.settings.host, port=self._port)
        serve.start(proxy_location=place, http_options=options, logging_config=QUIET)

    def start(self, source: Source, examples: Sequence[Mapping[str, str]] = ()) -> Running:
        """Start a version beside what runs; raises WorkFailed, and leaves nothing, where it does not get ready."""
        settings, replicas = self.settings, self.settings.replicas
        number = next(self._numbers)
        application = f"{ENDPOINT}-engine-{number}-{re.sub('[^A-Za-z0-9-]', '-', source.version)[:40]}"
        self._applications.add(application)
        gpus = replicas.gpus if replicas.gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
        room = settings.engine.slots + settings.engine.max_queue
        deployment = serve.deployment(
            name="engine",
            max_ongoing_requests=2 * room,
            max_queued_requests=room,
            # As many failed starts in all end it: what is wrong with a version fails in each, a node's mishap in one.
            max_constructor_retry_count=replicas.least,
            health_check_period_s=2,
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=settings.timeout_s,
            graceful_shutdown_wait_loop_s=0.5,
            ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": gpus},
            autoscaling_config=AutoscalingConfig(
                min_replicas=replicas.least,
                max_replicas=replicas.most,
                upscale_delay_s=replicas.up_after_s,
                downscale_delay_s=replicas.down_after_s,
                look_back_period_s=11.0,
                policy=AutoscalingPolicy(
                    policy_function="tokendial.serve.autoscaling:TokenPolicy",
                    policy_kwargs={"target_share": replicas.target_share},
                ),
            ),
        )(EngineReplica)
        threads = settings.engine.threads or max(1, round(replicas.cpus))
        engine = settings.engine.model_copy(update={"threads": threads})
        handle = self._run(deployment.bind(source, engine), application)
        return Running(source, application, handle, examples)

    def switch(self, to: Running, outcome: str = "") -> None:
        """Give new requests to a version that was started; raises WorkFailed where the endpoint does not take it."""
        settings = self.settings
        limits = Limits(settings.new_tokens, settings.timeout_s)
        caps = Caps(
            settings.max_body_mib * 2**20,
            settings.max_body_s,
            max_requests=settings.max_requests,
            max_held_bytes=settings.max_held_mib * 2**20,
        )
        hosts = frozenset(settings.image_hosts)
        terms = Terms(may_bend=settings.may_bend)
        options = Options(limits, caps, terms, hosts, settings.engine.max_images, share=1 / settings.processes)
        endpoint = serve.deployment(
            name="endpoint",
            num_replicas=settings.processes,
            max_ongoing_requests=2 * settings.max_requests,
            max_queued_requests=settings.max_requests,
            backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1.0),
            ray_actor_options={"num_cpus": beside_cpus()},
            health_check_period_s=5,
            user_config={
                "application": to.application,
                "examples": list(to.examples),
                "outcome": outcome,
                # Serve calls `reconfigure` only where something differs.
                "change": next(self._numbers),
            },
        )(serve.ingress()(EndpointReplica))
        traces = None
        if self._tracking_uri is not None and settings.trace_share:
            traces = Traces(self._tracking_uri, f"serve.{to.source.name}", settings.trace_share)
        try:
            bound = endpoint.bind(options, self._keys, traces, settings.replicas.most)
            serve.run(bound, name=ENDPOINT, route_prefix="/", logging_config=QUIET)
        except RuntimeError as error:
            raise WorkFailed(f"the endpoint did not take it: {_reason(ENDPOINT) or error}") from error

    def drop(self, running: Running) -> None:
        """Let a version finish its answers and end it."""
        serve.delete(running.application)
        self._applications.discard(running.application)

    def close(self) -> None:
        """End the endpoint, and the cluster where it was started for it."""
        if self._ours:
            # Ray prints to stdout of its own controller's end, which would follow a command's last line there.
            with redirect_stdout(io.StringIO()):
                serve.shutdown()
                ray.shutdown()
            return
        for application in (ENDPOINT, *self._applications):
            serve.delete(application)

    def _run(self, bound: Any, application: str) -> DeploymentHandle[Any]:
        """`serve.run` under a time limit: a version may hang in its start."""
        outcome: list[Any] = []

        def work() -> None:
            try:
                outcome.append(serve.run(bound, name=application, route_prefix=None, logging_config=QUIET))
            # Whatever keeps a version from starting is told by the thread that waits.
            except Exception as error:
                outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self.settings.start_timeout_s)
        if outcome and isinstance(outcome[0], DeploymentHandle):
            # Versions are proved in an event loop that ends; a router in it would end too and could not be shut down.
            outcome[0]._init(_run_router_in_separate_loop=True)
            return outcome[0]
        reason = _reason(application) or (str(outcome[0]) if outcome else "")
        serve.delete(application)
        self._applications.discard(application)
        if not outcome:
            raise WorkFailed(f"the version was not ready within {self.settings.start_timeout_s:g} s")
        raise WorkFailed(f"the version did not start: {reason}") from outcome[0]


def connect() -> bool:
    """Join the Ray cluster of this process, or start one on this machine's loopback; whether it was started."""
    if ray.is_initialized():
        return False
    # Without an address Ray would join whatever cluster was started last on this machine.
    address = os.environ.get("RAY_ADDRESS") or "local"
    for name, value in CLUSTER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init(address=address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    return address == "local"


def beside_cpus() -> float:
    """CPUs of a process that only passes on: none, or so few that it is not put on a head that has none to give.

    Such a head is there to be restarted without anybody noticing.
    """
    cpus = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return 0.001 if min(cpus) == 0 < max(cpus) else 0.0


def free_port(host: str, wanted: int) -> int:
    """The wanted port, or any that is free where it is 0; raises ConfigError where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError as error:
            raise ConfigError(f"port = {wanted} on host = {host!r} cannot be used: {error.strerror}") from None
        return probe.getsockname()[1]


def _reason(application: str) -> str:
    """Why Serve says that an application is not running: the last line of what its constructor raised."""
    found = serve.status().applications.get(application)
    if found is None:
        return ""
    messages = [found.message, *(deployment.message for deployment in found.deployments.values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Failed|Exception)\b", line)]
    return (raised or lines or [""])[-1][:500]

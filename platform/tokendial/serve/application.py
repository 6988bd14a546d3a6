"""The endpoint on Ray Serve: endpoint processes in front, engine replicas of one version behind.

Each version is an application of its own, without a route; the endpoint is told which one answers. A version is changed
by starting the new one beside the old, checking it, telling the endpoint, and letting the old one finish its answers.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, RaySystemError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig, HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, LoggingConfig

from tokendial import __version__, environment
from tokendial.experiments import ConfigError
from tokendial.failures import ClusterAway, WorkFailed
from tokendial.serve.dial import Limits, Terms
from tokendial.serve.endpoint import EndpointReplica, Traces
from tokendial.serve.hold import Hold
from tokendial.serve.ingress import Options
from tokendial.serve.limits import Caps
from tokendial.serve.options import LOOPBACK, ServeSettings
from tokendial.serve.replica import EngineReplica
from tokendial.serve.source import Source

log = logging.getLogger("tokendial.serve")

ENDPOINT = "tokendial"
ENGINE = f"{ENDPOINT}-engine-"
TELL_TIMEOUT_S = 5.0
POLL_S = 0.2
# The controller is restarted, or its node is lost, or so slow that a call times out.
AWAY = (RayActorError, RaySystemError, RayServeException, TimeoutError)
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
        self._opened = False
        self._hold = Hold()
        self._numbers = itertools.count(1)
        self._cpus = 0.0
        self._front: DeploymentHandle[Any] | None = None

    @property
    def url(self) -> str:
        """Where the endpoint listens."""
        host = "localhost" if self.settings.on_loopback else self.settings.host
        return f"http://{host}:{self.settings.port}"

    def open(self, who: str) -> None:
        """Start Serve's controller and proxies, or join those that this cluster has.

        Raises ConfigError where these listen elsewhere than is asked for, the port is taken, or another process keeps
        the endpoint; that one was told `who` does.
        """
        if not self._ours:
            self._hold.take(who)
        there = None if self._ours else _get_global_client(raise_if_no_controller_running=False)
        if there is not None:
            self.settings = listening(self.settings, there.http_config, self._keys is not None)
        else:
            port = free_port(self.settings.host, self.settings.port)
            self.settings = self.settings.model_copy(update={"port": port})
            place = ProxyLocation.HeadOnly if self.settings.on_loopback else ProxyLocation.EveryNode
            options = HTTPOptions(host=self.settings.host, port=port)
            serve.start(proxy_location=place, http_options=options, logging_config=QUIET)
        # Asked once: another number would restart the endpoint's processes at the next change.
        self._cpus = beside_cpus()
        found = serve.status().applications
        self._opened = ENDPOINT not in found or found[ENDPOINT].status == ApplicationStatus.DELETING
        taken = (int(name.removeprefix(ENGINE).partition("-")[0]) for name in found if name.startswith(ENGINE))
        self._numbers = itertools.count(1 + max(taken, default=0))

    def start(self, source: Source, examples: Sequence[Mapping[str, str]] = ()) -> Running:
        """Start a version beside what runs; raises WorkFailed, and leaves nothing, where it does not get ready.

        Where Serve cannot be asked, it raises ClusterAway; what it then leaves, `drop_others` of a later version drops.
        So it does, leaving nothing, where the cluster has no room for one more version.
        """
        settings, replicas = self.settings, self.settings.replicas
        application = f"{ENGINE}{next(self._numbers)}-{re.sub('[^A-Za-z0-9-]', '-', source.version)[:40]}"
        gpus = replicas.gpus if replicas.gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
        if self._ours:
            _check_gpus(gpus * replicas.least)
        room = settings.engine.slots + settings.engine.max_queue
        deployment = serve.deployment(
            name="engine",
            max_ongoing_requests=2 * room,
            max_queued_requests=room,
            # As many failed starts in all end it: what is wrong with a version fails in each, a node's mishap in one.
            max_constructor_retry_count=replicas.least,
            health_check_period_s=2,
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=settings.drain_s,
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
        try:
            handle = self._run(deployment.bind(source, engine), application)
        except WorkFailed as error:
            with suppress(*AWAY):
                serve.delete(application, _blocking=False)
            if isinstance(error, ClusterAway):
                raise
            raise WorkFailed(f"the version did not start: {error}") from error
        return Running(source, application, handle, examples)

    def switch(self, to: Running) -> None:
        """Give new requests to a version that was started; raises WorkFailed where the endpoint does not take it.

        The endpoint's processes stay, and what they have begun goes on where it is.
        """
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
            ray_actor_options={"num_cpus": self._cpus},
            health_check_period_s=5,
            graceful_shutdown_timeout_s=settings.drain_s,
            # Where a process must be replaced, its successor starts first.
            max_surge_percent=100,
            user_config={"application": to.application, "examples": list(to.examples)},
        )(serve.ingress()(EndpointReplica))
        traces = None
        if self._tracking_uri is not None and settings.trace_share:
            traces = Traces(self._tracking_uri, f"serve.{to.source.name}", settings.trace_share)
        # Serve restarts processes of another code version, which is a random one unless it is said.
        endpoint._version = _code_version(options, self._keys, traces, settings.replicas.most)
        bound = endpoint.bind(options, self._keys, traces, settings.replicas.most)
        try:
            self._front = self._run(bound, ENDPOINT, "/")
        except WorkFailed as error:
            if isinstance(error, ClusterAway):
                raise
            raise WorkFailed(f"the endpoint did not take it: {error}") from error

    def count(self, outcome: str) -> None:
        """Count a change in every endpoint process; a process that cannot be told counts one less."""
        assert self._front is not None
        try:
            self._front.broadcast("count", outcome).results(timeout_s=TELL_TIMEOUT_S, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError) as error:
            log.warning("the endpoint could not be told that a version was %s: %s", outcome, error)

    def drop(self, running: Running) -> None:
        """Let a version finish its answers and end; nobody waits for that."""
        serve.delete(running.application, _blocking=False)

    def drop_others(self, than: Running) -> None:
        """Drop every version but this one: the one before it, and what a process that is gone has left."""
        for application in _engines():
            if application != than.application:
                serve.delete(application, _blocking=False)

    def give_up(self) -> None:
        """After a start that failed: close what was opened for it; an endpoint that was there before goes on."""
        if self._ours or self._opened:
            self.close()
        self._hold.release()

    def close(self) -> None:
        """End the endpoint, and the cluster where it was started for it."""
        if self._ours:
            # Ray prints to stdout of its own controller's end, which would follow a command's last line there.
            with redirect_stdout(io.StringIO()):
                serve.shutdown()
                ray.shutdown()
            return
        leaving = {ENDPOINT, *_engines()}
        for application in leaving:
            serve.delete(application, _blocking=False)
        self._hold.release()
        deadline = time.monotonic() + self.settings.timeout_s
        while left := leaving & set(serve.status().applications):
            if time.monotonic() > deadline:
                log.warning("%s: still finishing answers; Ray Serve goes on ending them", ", ".join(sorted(left)))
                return
            time.sleep(0.2)

    def _run(self, bound: Any, application: str, route: str | None = None) -> DeploymentHandle[Any]:
        """`serve.run` under a time limit: a version may hang in its start, and where it does, so do endpoint processes.

        Raises ClusterAway for what is about Serve, and WorkFailed for what is about the application.
        """
        target = serve.RunTarget(bound, application, route, QUIET)
        try:
            [handle] = serve.run_many(
                [target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
            )
            self._wait_for(application)
            client = _get_global_client()
            assert client is not None
            client.wait_for_proxies_serving()
        # Another application may have the route, too.
        except AWAY as error:
            raise ClusterAway(f"Ray Serve did not do it: {error}") from error
        if not handle.is_initialized:
            # Versions are proved in an event loop that ends; a router in it would end too and could not be shut down.
            handle._init(_run_router_in_separate_loop=True)
        return handle

    def _wait_for(self, application: str) -> None:
        most_s = self.settings.start_timeout_s
        deadline = time.monotonic() + most_s
        while time.monotonic() < deadline:
            found = serve.status().applications.get(application)
            if found is None:
                raise WorkFailed("it was deleted meanwhile")
            if found.status == ApplicationStatus.RUNNING:
                return
            if found.status == ApplicationStatus.DEPLOY_FAILED:
                raise WorkFailed(_reason(application))
            time.sleep(POLL_S)
        reason = _reason(application)
        if "to be scheduled" in reason:
            needs = re.search(r"required for each replica: (\{.*?\})", reason)
            raise ClusterAway(
                f"for {most_s:g} s the cluster had no room for a version beside what runs; "
                f"each of its replicas needs {needs[1] if needs else reason}"
            )
        raise WorkFailed(f"it was not ready within {most_s:g} s")


def connect() -> bool:
    """Join the Ray cluster of this process, or start one on this machine's loopback; whether it was started."""
    if ray.is_initialized():
        return False
    address = environment.cluster_address()
    for name, value in CLUSTER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init(address=address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    environment.protect_token()
    return address == "local"


def beside_cpus() -> float:
    """CPUs of a process that only passes on: none, or so few that it is not put on a head that has none to give.

    Such a head is there to be restarted without anybody noticing.
    """
    cpus = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return 0.001 if min(cpus) == 0 < max(cpus) else 0.0


def listening(wanted: ServeSettings, there: HTTPOptions, keyed: bool) -> ServeSettings:
    """The settings at the address of a Serve that runs already, which keeps the one that it was started with.

    Raises ConfigError where another one was asked for, or a key is needed there and none is asked for.
    """
    for name, found in {"host": there.host, "port": there.port}.items():
        if name in wanted.model_fields_set and getattr(wanted, name) not in (found, 0):
            raise ConfigError(
                f"this cluster's Ray Serve listens at {name} = {found!r} since it was started; "
                f"leave {name} out, or end it with `serve shutdown`"
            )
    if there.host not in LOOPBACK and not keyed:
        raise ConfigError(f"this cluster's Ray Serve listens at host = {there.host!r}, off loopback; give keys=true")
    return wanted.model_copy(update={"host": there.host, "port": there.port})


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


def _check_gpus(needed: float) -> None:
    """Raise ClusterAway where the cluster has not as many free."""
    free = ray.available_resources().get("GPU", 0.0)
    if needed > free:
        raise ClusterAway(
            f"a version needs {needed:g} GPUs (replicas.least × replicas.gpus) beside what runs, and {free:g} are "
            "free; it starts once they are, and replicas.gpus=0.5 lets two share one"
        )


def _engines() -> list[str]:
    """The applications of versions, whoever started them."""
    return [name for name in serve.status().applications if name.startswith(ENGINE)]


def _code_version(options: Options, keys: str | None, traces: Traces | None, most_replicas: int) -> str:
    """Differs where an endpoint process would have to be started with something else."""
    bound = [__version__, asdict(options), keys, traces and asdict(traces), most_replicas]
    return hashlib.sha256(json.dumps(bound, default=sorted).encode()).hexdigest()[:16]


def _reason(application: str) -> str:
    """Why Serve says that an application is not running: the last line of what its constructor raised."""
    found = serve.status().applications.get(application)
    if found is None:
        return ""
    messages = [found.message, *(deployment.message for deployment in found.deployments.values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Failed|Exception)\b", line)]
    return (raised or lines or [""])[-1][:500]

"""The endpoint on Ray Serve: endpoint processes in front, engine replicas of one version behind. Only this imports it.

Each version is an application of its own, without a route; the endpoint is told which one answers. A version is changed
by starting the new one beside the old, checking it, telling the endpoint, and letting the old one finish its answers.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions, ProxyLocation
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.serve.schema import LoggingConfig

from tokendial import environment
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.serve.backend import Lost, Served, Whole
from tokendial.serve.dial import Limits, Terms
from tokendial.serve.exposition import Exposition
from tokendial.serve.ingress import Options, create_app
from tokendial.serve.keys import KeyStore
from tokendial.serve.limits import Caps
from tokendial.serve.options import ServeSettings
from tokendial.serve.replica import EngineReplica, Refusal
from tokendial.serve.request import Busy, Chunk, Done, ServeRequest
from tokendial.serve.source import Source

ENDPOINT = "tokendial"
TRIES = 5
RETRY_S = 0.2
LOAD_TIMEOUT_S = 2.0
LOAD_KEPT_S = 0.2
# A replica that died, is being replaced, or never came: the answer may be begun again elsewhere.
GONE = (RayActorError, ReplicaUnavailableError)
QUIET = LoggingConfig(log_level="ERROR", enable_access_log=False)


class ReplicaBackend:
    """Answers from the engine replicas of the version that takes traffic; a death costs a retry, not an answer."""

    def __init__(self, exposition: Exposition) -> None:
        self._series = exposition
        self._handle: DeploymentHandle[Any] | None = None
        self._served: Served | None = None
        self._load: tuple[float, Mapping[str, Mapping[str, Any]]] = (0.0, {})

    async def follow(self, application: str) -> None:
        """Send what comes from now on to this application; what has begun goes on where it is."""
        handle = serve.get_app_handle(application)
        served = await handle.served.remote()
        self._handle, self._served, self._load = handle, served, (0.0, {})

    def served(self) -> Served:
        assert self._served is not None
        return self._served

    async def answer(self, request: ServeRequest) -> Whole:
        for attempt in itertools.count(1):
            response = self._engine().answer.remote(request)
            try:
                outcome = await response
            except GONE as error:
                await self._again(attempt, error)
                continue
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise Busy("no engine has room", 1.0) from error
            except asyncio.CancelledError:
                response.cancel()
                raise
            if isinstance(outcome, Refusal):
                raise outcome.error()
            return outcome
        raise AssertionError

    async def stream(self, request: ServeRequest) -> AsyncIterator[Chunk | Done]:
        for attempt in itertools.count(1):
            begun = False
            response = self._engine().options(stream=True).stream.remote(request)
            pieces = cast("DeploymentResponseGenerator[Any]", response)
            try:
                async for item in pieces:
                    if isinstance(item, Refusal):
                        raise item.error()
                    begun = True
                    yield item
                return
            except GONE as error:
                if begun:
                    raise Lost from error
                await self._again(attempt, error)
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise Busy("no engine has room", 1.0) from error
            finally:
                pieces.cancel()

    async def load(self) -> Mapping[str, Mapping[str, Any]]:
        if time.monotonic() - self._load[0] > LOAD_KEPT_S:
            found = self._engine().broadcast("load")
            with suppress(TimeoutError):
                loads = await found.results_async(timeout_s=LOAD_TIMEOUT_S, return_exceptions=True)
                whole = [load for load in loads if isinstance(load, dict)]
                self._load = time.monotonic(), {str(number): load for number, load in enumerate(whole)}
        return self._load[1]

    def _engine(self) -> DeploymentHandle[Any]:
        assert self._handle is not None
        return self._handle

    async def _again(self, attempt: int, error: Exception) -> None:
        if attempt >= TRIES:
            raise ConnectionError("no engine replica stayed alive") from error
        self._series.retried(self.served().name)
        await asyncio.sleep(RETRY_S * attempt)


class EndpointReplica:
    """An endpoint process; `reconfigure` names the application that answers, without a restart."""

    def __init__(self, options: Options, keys: str | None) -> None:
        environment.apply()
        self._options = options
        self._keys = None if keys is None else KeyStore(Path(keys))
        self._exposition = Exposition()
        self._backend = ReplicaBackend(self._exposition)

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Called by Serve before the first request and at every change of version."""
        await self._backend.follow(config["application"])
        if config["outcome"]:
            self._exposition.changed(config["outcome"])

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self._backend, self._options, self._keys, self._exposition)


@dataclass(frozen=True)
class Running:
    """A version that was started: its application, and the handle to its replicas."""

    source: Source
    application: str
    handle: DeploymentHandle[Any]


class Endpoint:
    """Serve in this cluster, from the process that keeps it: start versions, switch to one, drop one, close."""

    def __init__(self, settings: ServeSettings, keys: str | None, ours: bool) -> None:
        """`keys` is the key store's file where keys are asked for; `ours`: the cluster was started for this."""
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

    def start(self, source: Source) -> Running:
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
            max_constructor_retry_count=1,
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
        return Running(source, application, handle)

    def switch(self, to: Running, outcome: str = "") -> None:
        """Give new requests to a version that was started."""
        settings = self.settings
        limits = Limits(settings.new_tokens, settings.timeout_s)
        caps = Caps(settings.max_body_mib * 2**20, settings.max_body_s, max_requests=settings.max_requests)
        hosts = frozenset(settings.image_hosts)
        terms = Terms(may_bend=settings.may_bend)
        options = Options(limits, caps, terms, hosts, share=1 / settings.processes)
        endpoint = serve.deployment(
            name="endpoint",
            num_replicas=settings.processes,
            max_ongoing_requests=2 * settings.max_requests,
            ray_actor_options={"num_cpus": 0},
            health_check_period_s=5,
            user_config={"application": to.application, "outcome": outcome},
        )(serve.ingress()(EndpointReplica))
        serve.run(endpoint.bind(options, self._keys), name=ENDPOINT, route_prefix="/", logging_config=QUIET)

    def drop(self, running: Running) -> None:
        """Let a version finish its answers and end it."""
        serve.delete(running.application)
        self._applications.discard(running.application)

    def close(self) -> None:
        """End the endpoint, and the cluster where it was started for it."""
        if self._ours:
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
    address = os.environ.get("RAY_ADDRESS")
    # Ray's default, 10 s, is long for a queue that fills in one.
    os.environ.setdefault("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "2")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init(address=address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    return not address


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

"""The endpoint as Serve's own configuration names it (`serve deploy`, KubeRay's RayService): a replica that keeps it.

    import_path: tokendial.serve.declared:build
    args: {model: tokendial-digits, settings: [replicas.most=4]}

The application is healthy once its model has proved itself, and then follows the alias as `tokendial serve` does.
Where the endpoint listens is Serve's `http_options`; a key is always asked for.
"""

# No postponed annotations here: Serve reads the type of `build`'s argument to make it from the configuration.
import asyncio
import logging
import threading

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.schema import ApplicationStatus

from tokendial.serve.options import serve_settings
from tokendial.serve.start import start

log = logging.getLogger("tokendial.serve")


class Declared(BaseModel):
    """What the configuration gives; see `tokendial serve --help`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(default=None, description="what to serve; null: the registry's champion")
    settings: tuple[str, ...] = Field(default=(), description="settings of the endpoint, as KEY=VALUE")


class KeeperReplica:
    """Starts versions beside itself and follows the alias; ready once the first one answers."""

    async def __init__(self, declared: Declared) -> None:
        settings = (*declared.settings, "keys=true")
        every_s = serve_settings(settings).follow_s
        self._application = serve.get_replica_context().app_name
        self._endpoint = await asyncio.to_thread(start, declared.model, settings, None, None, log.info)
        self._stop = threading.Event()
        self._following = threading.Thread(target=self._follow, args=(every_s,), daemon=True)
        self._following.start()

    def check_health(self) -> None:
        """Called by Serve; a replica that raises is started anew beside the endpoint, which goes on."""
        if not self._following.is_alive():
            raise RuntimeError("the endpoint is no longer kept")

    def __del__(self) -> None:
        """Called by Serve whenever a replica is stopped: the endpoint ends only where the application is removed.

        Otherwise another keeper follows, which starts its version beside the one that serves and then drops that.
        """
        if hasattr(self, "_following") and not self._stop.is_set():
            self._stop.set()
            found = serve.status().applications.get(self._application)
            if found is not None and found.status == ApplicationStatus.DELETING:
                self._endpoint.close()

    def _follow(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            self._endpoint.look()


def build(declared: Declared) -> serve.Application:
    """The application of a configuration."""
    from tokendial.serve.application import beside_cpus

    keeper = serve.deployment(
        name="keeper",
        num_replicas=1,
        ray_actor_options={"num_cpus": beside_cpus()},
        max_constructor_retry_count=3,
        health_check_period_s=10,
    )(KeeperReplica)
    return keeper.bind(declared)

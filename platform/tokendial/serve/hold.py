"""One keeper for the endpoint of a cluster: a named actor that lives as long as the process that keeps it."""

import time
from typing import Any

import ray
from ray.exceptions import RayError

from tokendial.experiments import ConfigError

NAME = NAMESPACE = "tokendial-endpoint"
# A keeper that was stopped is gone within this.
PATIENCE_S = 5.0


class Holder:
    """Says who keeps the endpoint."""

    def __init__(self, who: str) -> None:
        self._who = who

    def who(self) -> str:
        return self._who


class Hold:
    """The right to change the endpoint of a cluster, which one process at a time can have."""

    def __init__(self) -> None:
        self._actor: Any = None

    def take(self, who: str) -> None:
        """Raises ConfigError, which names the other one, where another process has it."""
        holder = ray.remote(num_cpus=0, max_restarts=-1)(Holder).options(name=NAME, namespace=NAMESPACE)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._actor = holder.remote(who)
                return
            # The name is taken.
            except ValueError:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"this cluster's endpoint is kept by {_other()}; end that one first, or use another cluster"
                    ) from None
            time.sleep(0.2)

    def release(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None


def _other() -> str:
    try:
        other: Any = ray.get_actor(NAME, namespace=NAMESPACE)
        return ray.get(other.who.remote(), timeout=PATIENCE_S)
    except (RayError, ValueError, TimeoutError):
        return "another process"

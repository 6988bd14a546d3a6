"""What a Ray cluster has room for, and whether a run's workers take its GPUs. Imports no ray.

A cluster that grows has room for what its autoscaler may bring it to, not only for what is up. Ray 2.60's autoscalers
tell drivers nothing of their limits (`get_max_resources_from_cluster_config` is None on KubeRay and `ray up`), so a
manifest says them in the environment of the head, where drivers run: `TOKENDIAL_GROWS_TO=CPU=112,GPU=8`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokendial.contracts import RunConfig
from tokendial.experiments import ConfigError

GROWS_TO = "TOKENDIAL_GROWS_TO"
_LIMITS = re.compile(r"(CPU|GPU)=\d+(,(CPU|GPU)=\d+)*")


@dataclass(frozen=True)
class Room:
    """CPUs and GPUs of a cluster, those that it may add included where it `grows`."""

    cpus: int
    gpus: int
    grows: bool = False


def room(up: Mapping[str, float], grows_to: str | None = None) -> Room:
    """The larger of what is up and what the cluster may grow to; raises ConfigError where that is not readable."""
    if grows_to and not _LIMITS.fullmatch(grows_to):
        raise ConfigError(f"{GROWS_TO}={grows_to!r} is not of the form CPU=112,GPU=8")
    most = {name: int(amount) for name, amount in re.findall(r"(\w+)=(\d+)", grows_to or "")}
    cpus, gpus = (max(int(up.get(name, 0)), most.get(name, 0)) for name in ("CPU", "GPU"))
    return Room(cpus, gpus, bool(most))


def takes_gpus(config: RunConfig[Any], cluster: Room) -> bool:
    """Whether workers train on a GPU each."""
    return cluster.gpus >= config.workers if config.device == "auto" else config.device == "gpu"


def check_room(config: RunConfig[Any], cluster: Room) -> None:
    """Raise ConfigError where the workers never fit; GPUs that a cluster does not have yet may come."""
    gpus = takes_gpus(config, cluster)
    devices = cluster.gpus if gpus else cluster.cpus
    if config.workers > devices and (cluster.grows or not gpus):
        kind = "GPUs" if gpus else "CPUs"
        raise ConfigError(f"workers {config.workers} is more than the {devices} {kind} of the Ray cluster")


def slots(config: RunConfig[Any], cluster: Room) -> int:
    """Runs of this configuration that fit at once, but always one."""
    devices = cluster.gpus if takes_gpus(config, cluster) else cluster.cpus
    return max(1, devices // config.workers)

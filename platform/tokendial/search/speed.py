"""What the Ray cluster of a search offers its trials: how many fit at once, and how fast one is on a worker's share."""

from __future__ import annotations

import os
import sys
from typing import Any

import ray
from ray.exceptions import RayError

from tokendial import environment
from tokendial.contracts import RunConfig
from tokendial.experiments import workload
from tokendial.failures import WorkFailed
from tokendial.resolve import from_document
from tokendial.search import budget
from tokendial.sizing import state_bytes
from tokendial.train import ray_trainer, room

# What torch, Ray and MLflow hold in a process before there is a model.
PROCESS_BYTES = 1 << 30


def slots(config: RunConfig[Any]) -> int:
    """Trials that fit the cluster at once, by its CPUs or GPUs and, where it does not grow, its memory; always one."""
    ray_trainer.connect()
    cluster = ray_trainer.cluster_room()
    fit, memory = room.slots(config, cluster), ray.cluster_resources().get("memory")
    if cluster.grows or memory is None:
        return fit
    return max(1, min(fit, int(memory // _trial_bytes(config, room.takes_gpus(config, cluster)))))


def _trial_bytes(config: RunConfig[Any], on_gpus: bool) -> float:
    """Memory of a trial's workers, without activations, and of the process that drives it; a GPU has its own."""
    cost = workload(config.workload).cost(config)
    state = 0 if on_gpus else state_bytes(config, cost, config.workers, config.zero.stage, bf16=False)
    return config.workers * (PROCESS_BYTES + state) + PROCESS_BYTES


def measured_speed(config: RunConfig[Any]) -> float:
    """FLOPs a second of one trial, probed where its first worker would be; raises ConfigError or WorkFailed."""
    ray_trainer.connect()
    use_gpu = room.takes_gpus(config, ray_trainer.cluster_room())
    config = config.model_copy(update={"device": "gpu" if use_gpu else "cpu"})
    probe = ray.remote(num_cpus=1, num_gpus=int(use_gpu), max_calls=1, max_retries=0)(_probe)
    try:
        return ray.get(probe.remote(config.model_dump(mode="json"), use_gpu, sys.path))
    except RayError as error:
        cause = getattr(error, "cause", None)
        if cause is not None:
            raise cause from error
        raise WorkFailed(f"the probe of a trial's speed was lost: {str(error).splitlines()[0][:500]}") from error


def _probe(document: dict[str, Any], use_gpu: bool, path: list[str]) -> float:
    """The probe's process, which finds a user's own modules where the driver did."""
    sys.path += [folder for folder in path if folder not in sys.path]
    environment.apply(use_gpu)
    import torch

    torch.set_num_threads(max(1, int(os.environ["OMP_NUM_THREADS"])))
    return budget.measured_speed(from_document(document))

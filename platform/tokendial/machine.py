"""What this machine offers a run: CPUs this process may use, and GPUs that Ray would find. Imports no torch."""

import os
from pathlib import Path


def cpus() -> int:
    """CPUs this process may use, which a container or `taskset` can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> int:
    """NVIDIA devices, or as many of them as CUDA_VISIBLE_DEVICES leaves."""
    devices = len([*Path("/dev").glob("nvidia[0-9]*")])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return devices
    return min(devices, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))

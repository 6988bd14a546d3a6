"""Memory of a training process, and of the device it trains on."""

import resource
import sys

import psutil
import torch


def reset_peak(device: torch.device) -> None:
    """Have a GPU's largest memory counted from now; resident memory's is that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Largest memory this process has held: since the reset on the GPU where it trains on one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_bytes(device: torch.device) -> int:
    """What a new process could take on the device now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available

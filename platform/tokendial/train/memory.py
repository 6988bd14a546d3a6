"""Peak memory of a training process."""

import resource
import sys

import torch


def peak_bytes(device: torch.device) -> int:
    """Largest memory this process has held: on the GPU where it trains on one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

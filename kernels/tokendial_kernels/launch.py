"""What every Triton launch needs: the tensor's device made current, block sizes, and warps for 16-byte lanes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# Arguments that differ from one request to the next: kernels of their own for 1, and for multiples of 16, would be
# compiled while a server's requests wait. How wide loads are goes by strides and channels.
VARYING = ["batch_size", "num_rows"]


def launch_options(num_warps: int, num_stages: int = 3, **constants: Any) -> dict[str, Any]:
    """Compile-time constants and options of a launch; whether a*b+c contracts is stated, as triton will change it."""
    return {**constants, "num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's CUDA device current; elsewhere (the interpreter) there is none to choose."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is not below `number` >= 1."""
    return 1 << (number - 1).bit_length()


def warps_for(block: int, itemsize: int) -> int:
    """Warps such that each of their lanes moves 16 bytes of a block at a time, from 1 to 8."""
    return max(1, min(8, block * itemsize // (16 * 32)))


def with_dense_channels(tensor: Tensor) -> Tensor:
    """The tensor itself where its last dimension has stride 1, else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()

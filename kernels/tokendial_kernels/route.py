"""Which route a tensor takes: the Triton kernel on CUDA where triton is installed, a library route elsewhere."""

import platform
from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None
# Other processors' oneDNN lacks the fused epilogues.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def runs_kernel(tensor: Tensor) -> bool:
    """True for CUDA tensors of a dtype the kernels accumulate exactly enough (float64 takes the library route)."""
    return HAS_TRITON and tensor.is_cuda and tensor.dtype in KERNEL_DTYPES


def runs_x86(tensor: Tensor) -> bool:
    """True for float32 on an x86 CPU, where oneDNN and FBGEMM are at their best, outside of torch.compile."""
    if torch.compiler.is_compiling() or not HAS_ONEDNN:
        return False
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def needs_gradient(*tensors: Tensor | None) -> bool:
    """True where autograd records and one of the tensors asks for a gradient."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)

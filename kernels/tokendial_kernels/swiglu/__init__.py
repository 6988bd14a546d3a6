"""SwiGLU activation over separate gate and up projections."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tokendial_kernels.route import needs_gradient, runs_kernel
from tokendial_kernels.swiglu.op import swiglu_op
from tokendial_kernels.swiglu.reference import swiglu_reference
from tokendial_kernels.validation import check_alike, check_floating

__all__ = ["swiglu"]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up for two tensors of one shape, dtype and device; ValueError otherwise."""
    check_floating("gate", gate)
    check_alike("up", up, "gate", gate, gate.shape)
    if runs_kernel(gate):
        return swiglu_op(gate, up)
    if torch.compiler.is_compiling() or needs_gradient(gate, up):
        return swiglu_reference(gate, up)
    # One buffer instead of two: on a CPU the second one costs as much as the product.
    return F.silu(gate).mul_(up)

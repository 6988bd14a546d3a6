"""`tokendial::swiglu` as a torch custom op: Triton on CUDA, library calls on a CPU, shapes for tracing, and gradients.

triton is imported on first use on CUDA.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("tokendial::swiglu", mutates_args=(), device_types="cuda")
def swiglu_op(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, contiguous."""
    from tokendial_kernels.swiglu.kernel import launch_swiglu

    return launch_swiglu(gate, up)


@torch.library.custom_op("tokendial::swiglu_backward", mutates_args=(), device_types="cuda")
def swiglu_backward_op(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up, contiguous."""
    from tokendial_kernels.swiglu.kernel import launch_swiglu_backward

    return launch_swiglu_backward(grad, gate, up)


@swiglu_op.register_kernel("cpu")
def _swiglu_cpu(gate: Tensor, up: Tensor) -> Tensor:
    return (F.silu(gate) * up).contiguous()


@swiglu_backward_op.register_kernel("cpu")
def _swiglu_backward_cpu(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate = grad * up * (sigmoid + silu * (1 - sigmoid))
    return grad_gate.contiguous(), (grad * silu).contiguous()


@swiglu_op.register_fake
def _swiglu_fake(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@swiglu_backward_op.register_fake
def _swiglu_backward_fake(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return swiglu_backward_op(grad, *ctx.saved_tensors)


swiglu_op.register_autograd(_swiglu_gradient, setup_context=_keep_inputs)

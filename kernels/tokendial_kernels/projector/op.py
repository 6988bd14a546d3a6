"""`tokendial::gated_linear` as a torch custom op: silu(x @ gate^T + b) * (x @ up^T + b) in one kernel on CUDA.

With `keep`, the gate and up rows are also returned, for the backward. triton is imported on first use on CUDA.
Shapes: M rows, C channels, H hidden width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokendial_kernels.swiglu.op import swiglu_backward_op


@torch.library.custom_op("tokendial::gated_linear", mutates_args=(), device_types="cuda")
def gated_linear_op(
    rows_MC: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hidden rows [M, H], and the gate and up rows [M, H] (or [0, H] without `keep`)."""
    from tokendial_kernels.projector.kernel import launch_gated_linear

    return launch_gated_linear(rows_MC, gate_weight, gate_bias, up_weight, up_bias, keep)


@gated_linear_op.register_kernel("cpu")
def _gated_linear_cpu(
    rows_MC: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    gate_MH, up_MH = F.linear(rows_MC, gate_weight, gate_bias), F.linear(rows_MC, up_weight, up_bias)
    hidden_MH = F.silu(gate_MH) * up_MH
    return (
        (hidden_MH, gate_MH, up_MH)
        if keep
        else (hidden_MH, gate_MH.new_empty(0, gate_MH.shape[1]), up_MH.new_empty(0, up_MH.shape[1]))
    )


@gated_linear_op.register_fake
def _gated_linear_fake(
    rows_MC: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, hidden = rows_MC.shape[0], gate_weight.shape[0]
    kept = num_rows if keep else 0
    return rows_MC.new_empty(num_rows, hidden), rows_MC.new_empty(kept, hidden), rows_MC.new_empty(kept, hidden)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    rows_MC, gate_weight, gate_bias, up_weight, up_bias, keep = inputs
    assert keep, "the gradient needs the gate and up rows"
    ctx.save_for_backward(rows_MC, gate_weight, up_weight, output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.has_bias = (gate_bias is not None, up_bias is not None)


def _gradient(ctx: Any, grad_MH: Tensor, *by_products: Tensor) -> tuple[Tensor | None, ...]:
    rows_MC, gate_weight, up_weight, gate_MH, up_MH = ctx.saved_tensors
    grad_gate_MH, grad_up_MH = swiglu_backward_op(grad_MH, gate_MH, up_MH)
    grad_rows_MC = torch.addmm(grad_gate_MH @ gate_weight, grad_up_MH, up_weight)
    grad_biases = [
        grad.sum(0) if has else None for has, grad in zip(ctx.has_bias, (grad_gate_MH, grad_up_MH), strict=True)
    ]
    return grad_rows_MC, grad_gate_MH.T @ rows_MC, grad_biases[0], grad_up_MH.T @ rows_MC, grad_biases[1], None


gated_linear_op.register_autograd(_gradient, setup_context=_keep_inputs)

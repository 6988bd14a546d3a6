"""The whole TokenFLEX projector: pool, LayerNorm, gate and up projections with SwiGLU, down projection."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from tokendial_kernels.pool_norm import pool_norm
from tokendial_kernels.projector.cpu import projector_cpu
from tokendial_kernels.projector.op import gated_linear_op
from tokendial_kernels.projector.reference import projector_reference
from tokendial_kernels.route import needs_gradient, runs_kernel, runs_x86
from tokendial_kernels.validation import check_alike, check_eps, check_floating, check_pooling

__all__ = ["projector"]


def projector(
    features_BNC: Tensor,
    grid: tuple[int, int],
    n: int,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    *,
    eps: float = 1e-6,
    method: Literal["adaptive_avg", "resize_then_avg"] = "adaptive_avg",
) -> Tensor:
    """Project [B, H*W, C] features to [B, n*n, D] tokens: down(silu(gate(x)) * up(x)), x = LayerNorm(pool(features)).

    Weights are laid out as in nn.Linear: gate and up [hidden, C], down [D, hidden]. Raises ValueError, naming the
    argument, on shapes, dtypes or devices that do not fit together.
    """
    check_pooling(features_BNC, grid, n, method)
    check_eps(eps)
    weights = (norm_weight, norm_bias, gate_weight, gate_bias, up_weight, up_bias, down_weight, down_bias)
    _check_weights(features_BNC, *weights)
    if runs_kernel(features_BNC):
        return _projector_cuda(features_BNC, grid, n, *weights, eps=eps, method=method)
    contiguous = all(weight.is_contiguous() for weight in (gate_weight, up_weight, down_weight))
    if runs_x86(features_BNC) and contiguous and not needs_gradient(features_BNC, *weights):
        return projector_cpu(features_BNC, grid, n, *weights, eps=eps, method=method)
    return projector_reference(features_BNC, grid, n, *weights, eps=eps, method=method)


def _check_weights(
    features_BNC: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
) -> None:
    check_floating("gate_weight", gate_weight, 2)
    check_floating("down_weight", down_weight, 2)
    channels, hidden, width = features_BNC.shape[2], gate_weight.shape[0], down_weight.shape[0]
    expected = (
        ("norm_weight", norm_weight, (channels,)),
        ("norm_bias", norm_bias, (channels,)),
        ("gate_weight", gate_weight, (hidden, channels)),
        ("gate_bias", gate_bias, (hidden,)),
        ("up_weight", up_weight, (hidden, channels)),
        ("up_bias", up_bias, (hidden,)),
        ("down_weight", down_weight, (width, hidden)),
        ("down_bias", down_bias, (width,)),
    )
    for name, tensor, shape in expected:
        if tensor is not None:
            check_alike(name, tensor, "features_BNC", features_BNC, shape)


def _projector_cuda(
    features_BNC: Tensor,
    grid: tuple[int, int],
    n: int,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    *,
    eps: float,
    method: Literal["adaptive_avg", "resize_then_avg"],
) -> Tensor:
    (normed_BkC,) = pool_norm(features_BNC, grid, (n,), norm_weight, norm_bias, eps=eps, method=method)
    rows_MC = normed_BkC.flatten(0, 1)
    keep = needs_gradient(rows_MC, gate_weight, gate_bias, up_weight, up_bias)
    hidden_MH, _, _ = gated_linear_op(rows_MC, gate_weight, gate_bias, up_weight, up_bias, keep)
    return F.linear(hidden_MH, down_weight, down_bias).view(features_BNC.shape[0], n * n, -1)

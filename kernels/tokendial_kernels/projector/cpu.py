"""The projector on a CPU, for inference: oneDNN's matrix products, with the product by `up` in an epilogue.

oneDNN picks AVX-512 kernels on every vendor's processors, where the default library of F.linear does not. SiLU runs in
place on the gate: its vectorised loop is faster than oneDNN's own epilogue. Training takes the reference route, which
autograd records.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tokendial_kernels.pool.cpu import pool_cpu


def projector_cpu(
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
    method: str,
) -> Tensor:
    """Project [B, N, C] to [B, n*n, D] without recording gradients."""
    linear = torch.ops.mkldnn._linear_pointwise
    pooled_BkC = pool_cpu(features_BNC, grid, n, method)
    normed_BkC = F.layer_norm(pooled_BkC, (pooled_BkC.shape[2],), norm_weight, norm_bias, eps)
    activated_BkH = F.silu(linear(normed_BkC, gate_weight, gate_bias, "none", [], ""), inplace=True)
    hidden_BkH = linear.binary(normed_BkC, activated_BkH, up_weight, up_bias, "mul")
    return linear(hidden_BkH, down_weight, down_bias, "none", [], "")

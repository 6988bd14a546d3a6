"""Pool a patch grid to several counts and normalise each, in one pass where a GPU runs it."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from tokendial_kernels.pool_norm.op import pool_norm_op
from tokendial_kernels.pool_norm.reference import pool_norm_reference
from tokendial_kernels.route import runs_kernel
from tokendial_kernels.validation import (
    METHODS,
    NORMS,
    check_alike,
    check_choice,
    check_eps,
    check_floating,
    check_grid,
    check_side,
)

__all__ = ["pool_norm"]


def pool_norm(
    features_BNC: Tensor,
    grid: tuple[int, int],
    ns: Sequence[int],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Literal["layer", "rms"] = "layer",
    eps: float = 1e-6,
    method: Literal["adaptive_avg", "resize_then_avg"] = "adaptive_avg",
) -> tuple[Tensor, ...]:
    """Pool [B, H*W, C] to [B, n*n, C] for each n of `ns`, then LayerNorm or RMSNorm over C with one weight and bias.

    Raises ValueError, naming the argument, on whatever cannot be pooled or normalised.
    """
    check_floating("features_BNC", features_BNC, 3)
    check_grid(features_BNC, grid)
    if len(ns) == 0:
        raise ValueError("ns is empty; admissible: at least one output side")
    for n in ns:
        check_side("ns", n, grid)
    check_choice("norm", norm, NORMS)
    check_choice("method", method, METHODS)
    check_eps(eps)
    channels = features_BNC.shape[2]
    check_alike("weight", weight, "features_BNC", features_BNC, (channels,))
    if bias is not None:
        check_alike("bias", bias, "features_BNC", features_BNC, (channels,))
    if not runs_kernel(features_BNC):
        return pool_norm_reference(features_BNC, grid, ns, weight, bias, norm, eps, method)
    rows_RC, _, _ = pool_norm_op(features_BNC, grid[0], grid[1], list(ns), weight, bias, norm, eps, method)
    batch = features_BNC.shape[0]
    parts = rows_RC.split([batch * n * n for n in ns])
    return tuple(part.view(batch, n * n, channels) for part, n in zip(parts, ns, strict=True))

"""Pool a channels-last patch grid to n by n tokens."""

from typing import Literal

from torch import Tensor

from tokendial_kernels.pool.cpu import pool_cpu
from tokendial_kernels.pool.op import pool_op
from tokendial_kernels.pool.reference import pool_reference
from tokendial_kernels.route import needs_gradient, runs_kernel, runs_x86
from tokendial_kernels.validation import check_pooling

__all__ = ["pool"]


def pool(
    features_BNC: Tensor,
    grid: tuple[int, int],
    n: int,
    method: Literal["adaptive_avg", "resize_then_avg"] = "adaptive_avg",
) -> Tensor:
    """Pool [B, H*W, C] features of an H by W grid to [B, n*n, C]; ValueError on anything that cannot be pooled."""
    check_pooling(features_BNC, grid, n, method)
    if runs_kernel(features_BNC):
        return pool_op(features_BNC, grid[0], grid[1], n, method)
    if runs_x86(features_BNC) and not needs_gradient(features_BNC):
        return pool_cpu(features_BNC, grid, n, method)
    return pool_reference(features_BNC, grid, n, method)

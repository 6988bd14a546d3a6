"""`tokendial::pool_norm` as a torch custom op: Triton on CUDA, library calls on a CPU, tracing shapes, and gradients.

The tokens of all counts share one buffer of rows, count by count, so that each count is a contiguous [B, n*n, C] view.
The mean and reciprocal standard deviation of each row are kept for the backward, which pools again rather than store
the pooled rows. triton is imported on first use on CUDA.
Shapes: B batch, N patches, C channels, R = B * sum of n*n rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokendial_kernels.pool.op import pool_backward_op
from tokendial_kernels.pool.reference import pool_reference


@torch.library.custom_op("tokendial::pool_norm", mutates_args=(), device_types="cuda")
def pool_norm_op(
    features_BNC: Tensor,
    height: int,
    width: int,
    ns: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    norm: str,
    eps: float,
    method: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised rows [R, C], and the mean and reciprocal deviation [R] in float32 (float64 for float64)."""
    from tokendial_kernels.pool_norm.kernel import launch_pool_norm

    return launch_pool_norm(features_BNC, height, width, ns, weight, bias, norm, eps, method)


@torch.library.custom_op("tokendial::pool_norm_backward", mutates_args=(), device_types="cuda")
def pool_norm_backward_op(
    grad_RC: Tensor,
    features_BNC: Tensor,
    mean_R: Tensor,
    rstd_R: Tensor,
    height: int,
    width: int,
    ns: Sequence[int],
    weight: Tensor,
    norm: str,
    method: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of features, weight and bias."""
    from tokendial_kernels.pool_norm.kernel import launch_pool_norm_backward

    return launch_pool_norm_backward(grad_RC, features_BNC, mean_R, rstd_R, height, width, ns, weight, norm, method)


def _pooled_rows(features_BNC: Tensor, height: int, width: int, ns: Sequence[int], method: str) -> Tensor:
    pooled = [pool_reference(features_BNC, (height, width), n, method).flatten(0, 1) for n in ns]
    rows_RC = torch.cat(pooled)
    return rows_RC if rows_RC.dtype == torch.float64 else rows_RC.float()


@pool_norm_op.register_kernel("cpu")
def _pool_norm_cpu(
    features_BNC: Tensor,
    height: int,
    width: int,
    ns: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    norm: str,
    eps: float,
    method: str,
) -> tuple[Tensor, Tensor, Tensor]:
    pooled_RC = _pooled_rows(features_BNC, height, width, ns, method)
    mean_R = pooled_RC.mean(1) if norm == "layer" else torch.zeros_like(pooled_RC[:, 0])
    centred_RC = pooled_RC - mean_R[:, None]
    rstd_R = torch.rsqrt(centred_RC.square().mean(1) + eps)
    rows_RC = centred_RC * rstd_R[:, None] * weight
    rows_RC = rows_RC if bias is None else rows_RC + bias
    return rows_RC.to(features_BNC.dtype), mean_R, rstd_R


@pool_norm_backward_op.register_kernel("cpu")
def _pool_norm_backward_cpu(
    grad_RC: Tensor,
    features_BNC: Tensor,
    mean_R: Tensor,
    rstd_R: Tensor,
    height: int,
    width: int,
    ns: Sequence[int],
    weight: Tensor,
    norm: str,
    method: str,
) -> tuple[Tensor, Tensor, Tensor]:
    pooled_RC = _pooled_rows(features_BNC, height, width, ns, method)
    normed_RC = (pooled_RC - mean_R[:, None]) * rstd_R[:, None]
    grad_RC = grad_RC.to(pooled_RC.dtype)
    scaled_RC = grad_RC * weight
    grad_pooled_RC = scaled_RC - normed_RC * (scaled_RC * normed_RC).mean(1, keepdim=True)
    if norm == "layer":
        grad_pooled_RC = grad_pooled_RC - scaled_RC.mean(1, keepdim=True)
    grad_pooled_RC = grad_pooled_RC * rstd_R[:, None]
    batch, _, channels = features_BNC.shape
    grad_BNC = torch.zeros(features_BNC.shape, dtype=pooled_RC.dtype, device=features_BNC.device)
    for n, part in zip(ns, grad_pooled_RC.split([batch * n * n for n in ns]), strict=True):
        grad_BNC += pool_backward_op(part.view(batch, n * n, channels), height, width, n, method)
    dtype = weight.dtype
    return grad_BNC.to(features_BNC.dtype), (grad_RC * normed_RC).sum(0).to(dtype), grad_RC.sum(0).to(dtype)


@pool_norm_op.register_fake
def _pool_norm_fake(
    features_BNC: Tensor,
    height: int,
    width: int,
    ns: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    norm: str,
    eps: float,
    method: str,
) -> tuple[Tensor, Tensor, Tensor]:
    num_rows = features_BNC.shape[0] * sum(n * n for n in ns)
    stats_dtype = torch.float64 if features_BNC.dtype == torch.float64 else torch.float32
    statistic_R = features_BNC.new_empty(num_rows, dtype=stats_dtype)
    return features_BNC.new_empty(num_rows, features_BNC.shape[2]), statistic_R, torch.empty_like(statistic_R)


@pool_norm_backward_op.register_fake
def _pool_norm_backward_fake(
    grad_RC: Tensor,
    features_BNC: Tensor,
    mean_R: Tensor,
    rstd_R: Tensor,
    height: int,
    width: int,
    ns: Sequence[int],
    weight: Tensor,
    norm: str,
    method: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return features_BNC.new_empty(features_BNC.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    features_BNC, height, width, ns, weight, bias, norm, _, method = inputs
    ctx.save_for_backward(features_BNC, weight, output[1], output[2])
    ctx.set_materialize_grads(True)
    ctx.arguments = (height, width, ns, norm, method, bias is not None)


def _gradient(ctx: Any, grad_RC: Tensor, grad_mean: Tensor, grad_rstd: Tensor) -> tuple[Tensor | None, ...]:
    # The statistics are by-products for the backward: no gradient flows through them.
    features_BNC, weight, mean_R, rstd_R = ctx.saved_tensors
    height, width, ns, norm, method, has_bias = ctx.arguments
    grad_features, grad_weight, grad_bias = pool_norm_backward_op(
        grad_RC, features_BNC, mean_R, rstd_R, height, width, ns, weight, norm, method
    )
    bias_or_none = grad_bias if has_bias else None
    return grad_features, None, None, None, grad_weight, bias_or_none, None, None, None


pool_norm_op.register_autograd(_gradient, setup_context=_keep)

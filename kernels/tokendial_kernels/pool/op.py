"""`tokendial::pool` as a torch custom op: Triton on CUDA, library calls on a CPU, shapes for tracing, and gradients.

Pooling is linear, so the gradient of the backward op is the forward op again. triton is imported on first use on CUDA.
Shapes: B batch, N = height * width patches, C channels, n output side, k = n * n.
"""

from typing import Any

import torch
from torch import Tensor

from tokendial_kernels.pool.reference import pool_reference
from tokendial_kernels.pool.windows import axis_matrix


@torch.library.custom_op("tokendial::pool", mutates_args=(), device_types="cuda")
def pool_op(features_BNC: Tensor, height: int, width: int, n: int, method: str) -> Tensor:
    """Pool [B, N, C] to [B, n*n, C]."""
    from tokendial_kernels.pool.kernel import launch_pool

    return launch_pool(features_BNC, height, width, n, method)


@torch.library.custom_op("tokendial::pool_backward", mutates_args=(), device_types="cuda")
def pool_backward_op(grad_BkC: Tensor, height: int, width: int, n: int, method: str) -> Tensor:
    """Spread the gradient of [B, n*n, C] tokens back over [B, N, C] patches."""
    from tokendial_kernels.pool.kernel import launch_spread

    rows_RC = grad_BkC.reshape(-1, grad_BkC.shape[2])
    return launch_spread(rows_RC, grad_BkC.shape[0], height, width, (n,), method, grad_BkC.dtype)


@pool_op.register_kernel("cpu")
def _pool_cpu(features_BNC: Tensor, height: int, width: int, n: int, method: str) -> Tensor:
    return pool_reference(features_BNC, (height, width), n, method).contiguous()


@pool_backward_op.register_kernel("cpu")
def _pool_backward_cpu(grad_BkC: Tensor, height: int, width: int, n: int, method: str) -> Tensor:
    rows_nH = axis_matrix(height, n, method, grad_BkC)
    columns_nW = axis_matrix(width, n, method, grad_BkC)
    spread_BHWC = torch.einsum("ih,jw,bijc->bhwc", rows_nH, columns_nW, grad_BkC.unflatten(1, (n, n)))
    return spread_BHWC.flatten(1, 2).contiguous()


@pool_op.register_fake
def _pool_fake(features_BNC: Tensor, height: int, width: int, n: int, method: str) -> Tensor:
    return features_BNC.new_empty(features_BNC.shape[0], n * n, features_BNC.shape[2])


@pool_backward_op.register_fake
def _pool_backward_fake(grad_BkC: Tensor, height: int, width: int, n: int, method: str) -> Tensor:
    return grad_BkC.new_empty(grad_BkC.shape[0], height * width, grad_BkC.shape[2])


def _keep_arguments(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.arguments = inputs[1:]


def _pool_gradient(ctx: Any, grad_BkC: Tensor) -> tuple[Tensor | None, ...]:
    return pool_backward_op(grad_BkC, *ctx.arguments), None, None, None, None


def _pool_backward_gradient(ctx: Any, grad_BNC: Tensor) -> tuple[Tensor | None, ...]:
    return pool_op(grad_BNC, *ctx.arguments), None, None, None, None


pool_op.register_autograd(_pool_gradient, setup_context=_keep_arguments)
pool_backward_op.register_autograd(_pool_backward_gradient, setup_context=_keep_arguments)

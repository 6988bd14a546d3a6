"""`tokendial::gather` as a torch custom op: Triton on CUDA, library calls on a CPU, shapes for tracing, and gradients.

The gradient gathers through the inverse index, so positions must not repeat within an item; those of `gather_prune`
never do. triton is imported on first use on CUDA.
Shapes: B batch, N tokens, K gathered tokens, C channels.
"""

from typing import Any

import torch
from torch import Tensor

from tokendial_kernels.gather_prune.reference import gather_reference


@torch.library.custom_op("tokendial::gather", mutates_args=(), device_types="cuda")
def gather_op(features_BNC: Tensor, positions_BK: Tensor) -> Tensor:
    """Rows [B, K, C] at the positions, zeros at -1."""
    from tokendial_kernels.gather_prune.kernel import launch_gather

    return launch_gather(features_BNC, positions_BK)


@gather_op.register_kernel("cpu")
def _gather_cpu(features_BNC: Tensor, positions_BK: Tensor) -> Tensor:
    return gather_reference(features_BNC, positions_BK)


@gather_op.register_fake
def _gather_fake(features_BNC: Tensor, positions_BK: Tensor) -> Tensor:
    return features_BNC.new_empty(*positions_BK.shape, features_BNC.shape[2])


def inverse_positions(positions_BK: Tensor, num_tokens: int) -> Tensor:
    """For each token [B, N] the place that holds it, or -1."""
    batch, num_places = positions_BK.shape
    place_BK = torch.arange(num_places, device=positions_BK.device).expand(batch, -1)
    # Empty places write to a spare last column, which is then cut off.
    column_BK = torch.where(positions_BK >= 0, positions_BK, num_tokens)
    spare_BN = positions_BK.new_full((batch, num_tokens + 1), -1)
    return spare_BN.scatter(1, column_BK, place_BK)[:, :num_tokens].contiguous()


def _keep_positions(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    features_BNC, positions_BK = inputs
    ctx.save_for_backward(positions_BK)
    ctx.num_tokens = features_BNC.shape[1]


def _gather_gradient(ctx: Any, grad_BKC: Tensor) -> tuple[Tensor, None]:
    (positions_BK,) = ctx.saved_tensors
    return gather_op(grad_BKC, inverse_positions(positions_BK, ctx.num_tokens)), None


gather_op.register_autograd(_gather_gradient, setup_context=_keep_positions)

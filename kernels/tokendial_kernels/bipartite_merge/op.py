"""`tokendial::match` and `tokendial::merge` as torch custom ops: Triton on CUDA, library calls on a CPU, and gradients.

Matching has no gradient: what is merged with what is a decision. triton is imported on first use on CUDA.
Shapes: B batch, N tokens, R merged away, M = N - R surviving, C channels.
"""

from typing import Any

import torch
from torch import Tensor

from tokendial_kernels.bipartite_merge.reference import (
    best_match_reference,
    choose_reference,
    merge_reference,
    take_rows,
)


@torch.library.custom_op("tokendial::match", mutates_args=(), device_types="cuda")
def match_op(metric_BNC: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sources [B, R], destinations [B, R], surviving tokens [B, M], and every token's surviving row [B, N]."""
    from tokendial_kernels.bipartite_merge.kernel import launch_best_match, launch_choose

    return launch_choose(*launch_best_match(metric_BNC), r, metric_BNC.shape[1])


@torch.library.custom_op("tokendial::merge", mutates_args=(), device_types="cuda")
def merge_op(
    features_BNC: Tensor,
    sizes_BN: Tensor | None,
    source_BR: Tensor,
    destination_BR: Tensor,
    kept_BM: Tensor,
    row_BN: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return size-weighted means [B, M, C] in the features' dtype, and their sizes [B, M] in float32 or wider."""
    from tokendial_kernels.bipartite_merge.kernel import launch_merge

    return launch_merge(features_BNC, sizes_BN, source_BR, destination_BR, kept_BM)


@match_op.register_kernel("cpu")
def _match_cpu(metric_BNC: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    best_BE, partner_BE = best_match_reference(metric_BNC)
    source_BR, destination_BR, kept_BM, row_BN = choose_reference(best_BE, partner_BE, r, metric_BNC.shape[1])
    return source_BR, destination_BR, kept_BM, row_BN


@merge_op.register_kernel("cpu")
def _merge_cpu(
    features_BNC: Tensor,
    sizes_BN: Tensor | None,
    source_BR: Tensor,
    destination_BR: Tensor,
    kept_BM: Tensor,
    row_BN: Tensor,
) -> tuple[Tensor, Tensor]:
    merged_BMC, sizes_BM = merge_reference(features_BNC, sizes_BN, source_BR, kept_BM, row_BN)
    return merged_BMC.to(features_BNC.dtype), sizes_BM.contiguous()


@match_op.register_fake
def _match_fake(metric_BNC: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, num_tokens, _ = metric_BNC.shape
    source_BR = metric_BNC.new_empty(batch, r, dtype=torch.int64)
    kept_BM = metric_BNC.new_empty(batch, num_tokens - r, dtype=torch.int64)
    return source_BR, torch.empty_like(source_BR), kept_BM, metric_BNC.new_empty(batch, num_tokens, dtype=torch.int64)


@merge_op.register_fake
def _merge_fake(
    features_BNC: Tensor,
    sizes_BN: Tensor | None,
    source_BR: Tensor,
    destination_BR: Tensor,
    kept_BM: Tensor,
    row_BN: Tensor,
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if features_BNC.dtype == torch.float64 else torch.float32
    merged_BMC = features_BNC.new_empty(*kept_BM.shape, features_BNC.shape[2])
    return merged_BMC, features_BNC.new_empty(kept_BM.shape, dtype=wide)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features_BNC, sizes_BN, _, _, _, row_BN = inputs
    ctx.save_for_backward(features_BNC, sizes_BN, row_BN, *output)


def _gradient(ctx: Any, grad_BMC: Tensor, grad_sizes_BM: Tensor) -> tuple[Tensor | None, ...]:
    # merged = sum(size * x) / total, so d merged / d x = size / total and d merged / d size = (x - merged) / total.
    features_BNC, sizes_BN, row_BN, merged_BMC, total_BM = ctx.saved_tensors
    shared_BNC = take_rows(grad_BMC.to(total_BM.dtype) / total_BM.unsqueeze(2), row_BN)
    if sizes_BN is None:
        return shared_BNC.to(features_BNC.dtype), None, None, None, None, None
    grad_features_BNC = shared_BNC * sizes_BN.unsqueeze(2)
    distance_BNC = features_BNC - take_rows(merged_BMC, row_BN)
    grad_sizes_BN = (shared_BNC * distance_BNC).sum(2) + grad_sizes_BM.gather(1, row_BN)
    return grad_features_BNC.to(features_BNC.dtype), grad_sizes_BN.to(sizes_BN.dtype), None, None, None, None


merge_op.register_autograd(_gradient, setup_context=_keep)

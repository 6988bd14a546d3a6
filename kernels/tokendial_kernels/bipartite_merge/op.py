"""`tokendial::best_match` as a torch custom op: Triton on CUDA, library calls on a CPU, shapes for tracing.

It has no gradient: what is merged with what is a decision. triton is imported on first use on CUDA.
"""

import torch
from torch import Tensor

from tokendial_kernels.bipartite_merge.reference import best_match_reference


@torch.library.custom_op("tokendial::best_match", mutates_args=(), device_types="cuda")
def best_match_op(metric_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """Return each even token's best cosine [B, E] in float32 and its partner's place among the odd tokens [B, E]."""
    from tokendial_kernels.bipartite_merge.kernel import launch_best_match

    return launch_best_match(metric_BNC)


@best_match_op.register_kernel("cpu")
def _best_match_cpu(metric_BNC: Tensor) -> tuple[Tensor, Tensor]:
    best_BE, partner_BE = best_match_reference(metric_BNC)
    return best_BE.float(), partner_BE


@best_match_op.register_fake
def _best_match_fake(metric_BNC: Tensor) -> tuple[Tensor, Tensor]:
    batch, num_tokens, _ = metric_BNC.shape
    best_BE = metric_BNC.new_empty(batch, num_tokens - num_tokens // 2, dtype=torch.float32)
    return best_BE, torch.empty_like(best_BE, dtype=torch.int64)

"""ToMe's bipartite merging: which r tokens go into which others, and the size-weighted merge and unmerge themselves."""

import torch
from torch import Tensor

from tokendial_kernels.bipartite_merge.cpu import best_match_cpu
from tokendial_kernels.bipartite_merge.merge import Merge
from tokendial_kernels.bipartite_merge.op import best_match_op
from tokendial_kernels.route import runs_kernel
from tokendial_kernels.validation import check_floating

__all__ = ["Merge", "bipartite_merge"]


def bipartite_merge(metric_BNC: Tensor, r: int) -> Merge:
    """Match r of the even tokens of [B, N, C], those nearest by cosine, to odd tokens; 0 <= r <= floor(N / 2).

    The match itself carries no gradient; merging and unmerging with it do. Raises ValueError, naming the argument.
    """
    check_floating("metric_BNC", metric_BNC, 3)
    num_tokens = metric_BNC.shape[1]
    if not isinstance(r, int) or not 0 <= r <= num_tokens // 2:
        raise ValueError(f"r is {r!r}; admissible: an integer from 0 to {num_tokens // 2}, half of {num_tokens} tokens")
    batch, device = metric_BNC.shape[0], metric_BNC.device
    if r == 0:
        nothing_BR = torch.empty(batch, 0, dtype=torch.int64, device=device)
        return Merge.of(nothing_BR, nothing_BR, num_tokens)
    with torch.no_grad():
        best_match = best_match_op if runs_kernel(metric_BNC) else best_match_cpu
        best_BE, partner_BE = best_match(metric_BNC)
        even_BR = best_BE.topk(r, dim=1).indices
        return Merge.of(2 * even_BR, 2 * partner_BE.gather(1, even_BR) + 1, num_tokens)

"""ToMe's bipartite merging: which r tokens go into which others, and the size-weighted merge and unmerge themselves."""

import torch
from torch import Tensor

from tokendial_kernels.bipartite_merge.cpu import best_match_cpu
from tokendial_kernels.bipartite_merge.merge import Merge
from tokendial_kernels.bipartite_merge.op import match_op
from tokendial_kernels.bipartite_merge.reference import choose_reference
from tokendial_kernels.route import runs_kernel
from tokendial_kernels.validation import check_floating, is_integer

__all__ = ["Merge", "bipartite_merge"]


def bipartite_merge(metric_BNC: Tensor, r: int) -> Merge:
    """Match r of the even tokens of [B, N, C], those nearest by cosine, to odd tokens; 0 <= r <= floor(N / 2).

    The match itself carries no gradient; merging and unmerging with it do. Raises ValueError, naming the argument.
    """
    check_floating("metric_BNC", metric_BNC, 3)
    num_tokens = metric_BNC.shape[1]
    if not is_integer(r) or not 0 <= r <= num_tokens // 2:
        raise ValueError(f"r is {r!r}; admissible: an integer from 0 to {num_tokens // 2}, half of {num_tokens} tokens")
    with torch.no_grad():
        if r == 0:
            token_BN = torch.arange(num_tokens, device=metric_BNC.device).repeat(metric_BNC.shape[0], 1)
            return Merge(token_BN[:, :0], token_BN[:, :0], token_BN, token_BN)
        if runs_kernel(metric_BNC):
            return Merge(*match_op(metric_BNC, r))
        return Merge(*choose_reference(*best_match_cpu(metric_BNC), r, num_tokens))

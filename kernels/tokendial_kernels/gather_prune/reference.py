"""Keep the top-scoring tokens in their original order, in plain PyTorch.

Worked example: scores (0.1, 0.9, 0.5), budget 2: positions (1, 2). With budgets (1, 2) for two such items, the first
has positions (1, -1): -1 marks an empty place, whose features are zero.
Shapes: B batch, N tokens, K = the largest budget, C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def top_positions(scores_BN: Tensor, budgets: Sequence[int]) -> Tensor:
    """Positions [B, K] of each item's top tokens, ascending, then -1."""
    num_tokens, largest = scores_BN.shape[1], max(budgets)
    top_BK = scores_BN.topk(largest, dim=1, sorted=min(budgets) < largest).indices
    if min(budgets) == largest:
        return top_BK.sort(dim=1).values
    rank_K = torch.arange(largest, device=scores_BN.device)
    budget_B1 = torch.tensor(budgets, device=scores_BN.device).unsqueeze(1)
    sorted_BK = torch.where(rank_K < budget_B1, top_BK, num_tokens).sort(dim=1).values
    return torch.where(sorted_BK < num_tokens, sorted_BK, -1)


def gather_reference(features_BNC: Tensor, positions_BK: Tensor, has_empty: bool = True) -> Tensor:
    """Rows [B, K, C] at the positions, zeros at -1; `has_empty` may be False where there is no -1."""
    batch, num_tokens, channels = features_BNC.shape
    first_B1 = torch.arange(0, batch * num_tokens, num_tokens, device=features_BNC.device).unsqueeze(1)
    index_K = (positions_BK.clamp(min=0) + first_B1).flatten()
    rows_BKC = features_BNC.flatten(0, 1).index_select(0, index_K).view(*positions_BK.shape, channels)
    return torch.where(positions_BK.unsqueeze(2) >= 0, rows_BKC, 0) if has_empty else rows_BKC

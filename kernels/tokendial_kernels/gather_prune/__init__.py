"""Keep each item's top-scoring tokens, in their original order, with their positions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokendial_kernels.gather_prune.op import gather_op
from tokendial_kernels.gather_prune.reference import gather_reference, top_positions
from tokendial_kernels.route import runs_kernel
from tokendial_kernels.validation import check_device, check_floating, check_shape, is_integer

__all__ = ["Pruned", "gather_prune"]


class Pruned(NamedTuple):
    """Kept features [B, K, C] and their positions [B, K]; places beyond an item's budget hold zeros and -1."""

    features_BKC: Tensor
    positions_BK: Tensor


def gather_prune(features_BNC: Tensor, scores_BN: Tensor, budget: int | Sequence[int]) -> Pruned:
    """Keep the `budget` top-scoring tokens of every item, or budget[b] of item b; K is the largest budget.

    Features carry gradients, scores do not. Raises ValueError, naming the argument.
    """
    check_floating("features_BNC", features_BNC, 3)
    batch, num_tokens, _ = features_BNC.shape
    check_floating("scores_BN", scores_BN, 2)
    check_shape("scores_BN", scores_BN, (batch, num_tokens))
    check_device("scores_BN", scores_BN, "features_BNC", features_BNC)
    if not isinstance(budget, int | Sequence):
        raise ValueError(f"budget is {budget!r}; admissible: one integer, or one per item, {batch}")
    budgets = [budget] * batch if isinstance(budget, int) else list(budget)
    if len(budgets) != batch:
        raise ValueError(f"budget has {len(budgets)} entries; admissible: one integer, or one per item, {batch}")
    for each in budgets:
        if not is_integer(each) or not 1 <= each <= num_tokens:
            raise ValueError(f"budget is {each!r}; admissible: an integer from 1 to {num_tokens}, the number of tokens")
    with torch.no_grad():
        positions_BK = top_positions(scores_BN, budgets)
    if runs_kernel(features_BNC):
        return Pruned(gather_op(features_BNC, positions_BK), positions_BK)
    has_empty = min(budgets) < max(budgets)
    return Pruned(gather_reference(features_BNC, positions_BK, has_empty), positions_BK)

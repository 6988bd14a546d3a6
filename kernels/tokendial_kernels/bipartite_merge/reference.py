"""ToMe's bipartite matching and merging in plain PyTorch (Bolya et al., arXiv 2210.09461, section 3).

Even tokens look among the odd ones for the partner with the largest cosine; the r nearest go into their partners.
Worked example: even tokens (1, 0), odd tokens (0, 2) and (3, 3) have cosines 0 and 0.7071: best 0.7071, partner 1.
Shapes: B batch, N tokens, E = ceil(N / 2) even tokens, R merged away, M = N - R surviving, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def best_match_reference(metric_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """Return each even token's best cosine [B, E] and its partner's place among the odd tokens [B, E]."""
    unit_BNC = F.normalize(metric_BNC, dim=-1)
    cosines_BEO = unit_BNC[:, ::2] @ unit_BNC[:, 1::2].transpose(1, 2)
    return cosines_BEO.max(dim=2)


def choose_reference(best_BE: Tensor, partner_BE: Tensor, r: int, num_tokens: int) -> tuple[Tensor, ...]:
    """Return sources [B, R], destinations [B, R], surviving tokens [B, M], and every token's surviving row [B, N]."""
    even_BR = best_BE.topk(r, dim=1).indices
    source_BR, destination_BR = 2 * even_BR, 2 * partner_BE.gather(1, even_BR) + 1
    token_BN = torch.arange(num_tokens, device=best_BE.device).expand(best_BE.shape[0], -1)
    rank_BN = torch.ones_like(token_BN).scatter(1, source_BR, 0).cumsum(1) - 1
    row_BN = rank_BN.scatter(1, source_BR, rank_BN.gather(1, destination_BR))
    # Tokens merged away write to a spare last column, which is then cut off.
    column_BN = rank_BN.scatter(1, source_BR, num_tokens - r)
    spare_BM = token_BN.new_zeros(best_BE.shape[0], num_tokens - r + 1)
    return source_BR, destination_BR, spare_BM.scatter(1, column_BN, token_BN)[:, :-1].contiguous(), row_BN


def merge_reference(
    features_BNC: Tensor, sizes_BN: Tensor | None, source_BR: Tensor, kept_BM: Tensor, row_BN: Tensor
) -> tuple[Tensor, Tensor]:
    """Return size-weighted means [B, M, C] and their sizes [B, M], both in float32 or wider."""
    features_BNC = features_BNC if features_BNC.dtype == torch.float64 else features_BNC.float()
    sizes_BN1 = torch.ones_like(features_BNC[:, :, :1]) if sizes_BN is None else sizes_BN.unsqueeze(2).to(features_BNC)
    target_K = flat_rows(row_BN.gather(1, source_BR), kept_BM.shape[1])

    def total(values_BNC: Tensor) -> Tensor:
        kept_BMC = take_rows(values_BNC, kept_BM)
        moved_KC = take_rows(values_BNC, source_BR).flatten(0, 1)
        return kept_BMC.flatten(0, 1).index_add(0, target_K, moved_KC).view_as(kept_BMC)

    sizes_BM1 = total(sizes_BN1)
    weighted_BNC = features_BNC if sizes_BN is None else features_BNC * sizes_BN1
    return total(weighted_BNC) / sizes_BM1, sizes_BM1.squeeze(2)


def flat_rows(index_BK: Tensor, num_rows: int) -> Tensor:
    """Indices [B * K] into the rows of all items in one line."""
    return (index_BK + torch.arange(index_BK.shape[0], device=index_BK.device).unsqueeze(1) * num_rows).flatten()


def take_rows(values_BNC: Tensor, index_BK: Tensor) -> Tensor:
    """Rows [B, K, C] at the indices; whole rows move at once, which a gather over channels does not do on a CPU."""
    rows_KC = values_BNC.flatten(0, 1).index_select(0, flat_rows(index_BK, values_BNC.shape[1]))
    return rows_KC.view(*index_BK.shape, values_BNC.shape[2])

"""A set of merges and what it does to features: size-weighted means on the way in, copies on the way out.

Surviving tokens keep their original order. Worked example: of tokens a, b, c with token 0 merged into token 1, the rows
are ((a + b) / 2, c) with sizes (2, 1), and unmerging gives ((a + b) / 2, (a + b) / 2, c).
Shapes: B batch, N tokens, R merged away, M = N - R surviving, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokendial_kernels.validation import check_device, check_floating, check_shape


@dataclass(frozen=True)
class Merge:
    """source [B, R] goes into destination [B, R]; kept [B, M] survive; row [B, N] is every token's surviving row."""

    source_BR: Tensor
    destination_BR: Tensor
    kept_BM: Tensor
    row_BN: Tensor

    @classmethod
    def of(cls, source_BR: Tensor, destination_BR: Tensor, num_tokens: int) -> "Merge":
        """Complete a set of source and destination indices, in which no destination is a source."""
        batch, num_merged = source_BR.shape
        num_kept = num_tokens - num_merged
        token_BN = torch.arange(num_tokens, device=source_BR.device).expand(batch, -1)
        survives_BN = torch.ones_like(token_BN).scatter(1, source_BR, 0)
        rank_BN = survives_BN.cumsum(1) - 1
        # Tokens merged away write to a spare last column, which is then cut off.
        column_BN = torch.where(survives_BN.bool(), rank_BN, num_kept)
        kept_BM = token_BN.new_zeros(batch, num_kept + 1).scatter(1, column_BN, token_BN)[:, :num_kept]
        row_BN = rank_BN.scatter(1, source_BR, rank_BN.gather(1, destination_BR))
        return cls(source_BR, destination_BR, kept_BM, row_BN)

    def merge(self, features_BNC: Tensor, sizes_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return merged features [B, M, C], the size-weighted means, and their sizes [B, M]; sizes default to 1."""
        self._check("features_BNC", features_BNC, self.row_BN.shape[1])
        wide = torch.float64 if features_BNC.dtype == torch.float64 else torch.float32
        weighted_BNC = features_BNC.to(wide)
        if sizes_BN is None:
            sizes_BN = features_BNC.new_ones(self.row_BN.shape)
        else:
            check_shape("sizes_BN", sizes_BN, self.row_BN.shape)
            check_device("sizes_BN", sizes_BN, "features_BNC", features_BNC)
            weighted_BNC = weighted_BNC * sizes_BN.to(wide).unsqueeze(2)
        sizes_BM1 = self._sum_rows(sizes_BN.to(wide).unsqueeze(2))
        merged_BMC = self._sum_rows(weighted_BNC) / sizes_BM1
        return merged_BMC.to(features_BNC.dtype), sizes_BM1.squeeze(2).to(sizes_BN.dtype)

    def unmerge(self, merged_BMC: Tensor) -> Tensor:
        """Give every token [B, N, C] the features of the row that it went into."""
        self._check("merged_BMC", merged_BMC, self.kept_BM.shape[1])
        return _take(merged_BMC, self.row_BN)

    def _sum_rows(self, values_BNC: Tensor) -> Tensor:
        """Sum the sources into their rows, touching only the tokens that survive or move."""
        kept_BMC = _take(values_BNC, self.kept_BM)
        index = _flat(self.row_BN.gather(1, self.source_BR), self.kept_BM.shape[1])
        moved_RC = _take(values_BNC, self.source_BR).flatten(0, 1)
        return kept_BMC.flatten(0, 1).index_add(0, index, moved_RC).view_as(kept_BMC)

    def _check(self, name: str, features: Tensor, num_rows: int) -> None:
        check_floating(name, features, 3)
        if features.shape[:2] != (self.row_BN.shape[0], num_rows):
            admissible = (self.row_BN.shape[0], num_rows, "any")
            raise ValueError(f"{name} has shape {tuple(features.shape)}; admissible: {admissible}")
        check_device(name, features, "the match", self.row_BN)


def _flat(index_BK: Tensor, num_rows: int) -> Tensor:
    """Indices [B * K] into the rows of all items in one line."""
    item_B1 = torch.arange(index_BK.shape[0], device=index_BK.device).unsqueeze(1)
    return (index_BK + item_B1 * num_rows).flatten()


def _take(values_BNC: Tensor, index_BK: Tensor) -> Tensor:
    """Rows [B, K, C] at the indices; whole rows move at once, which a gather over channels does not do on a CPU."""
    rows_KC = values_BNC.flatten(0, 1).index_select(0, _flat(index_BK, values_BNC.shape[1]))
    return rows_KC.view(*index_BK.shape, values_BNC.shape[2])

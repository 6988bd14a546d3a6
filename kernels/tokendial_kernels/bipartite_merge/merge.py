"""A set of merges and what it does to features: size-weighted means on the way in, copies on the way out.

Surviving tokens keep their original order. Worked example: of tokens a, b, c with token 0 merged into token 1, the rows
are ((a + b) / 2, c) with sizes (2, 1), and unmerging gives ((a + b) / 2, (a + b) / 2, c).
Shapes: B batch, N tokens, R merged away, M = N - R surviving, C channels.
"""

from dataclasses import dataclass

from torch import Tensor

from tokendial_kernels.bipartite_merge.op import merge_op
from tokendial_kernels.bipartite_merge.reference import merge_reference, take_rows
from tokendial_kernels.route import runs_kernel
from tokendial_kernels.validation import check_device, check_floating, check_shape


@dataclass(frozen=True)
class Merge:
    """source [B, R] goes into destination [B, R]; kept [B, M] survive; row [B, N] is every token's surviving row."""

    source_BR: Tensor
    destination_BR: Tensor
    kept_BM: Tensor
    row_BN: Tensor

    def merge(self, features_BNC: Tensor, sizes_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return merged features [B, M, C], the size-weighted means, and their sizes [B, M]; sizes default to 1."""
        self._check("features_BNC", features_BNC, self.row_BN.shape[1])
        if sizes_BN is not None:
            check_floating("sizes_BN", sizes_BN)
            check_shape("sizes_BN", sizes_BN, self.row_BN.shape)
            check_device("sizes_BN", sizes_BN, "features_BNC", features_BNC)
        sizes_dtype = features_BNC.dtype if sizes_BN is None else sizes_BN.dtype
        if runs_kernel(features_BNC):
            indices = self.source_BR, self.destination_BR, self.kept_BM, self.row_BN
            merged_BMC, sizes_BM = merge_op(features_BNC, sizes_BN, *indices)
        else:
            indices = self.source_BR, self.kept_BM, self.row_BN
            merged_BMC, sizes_BM = merge_reference(features_BNC, sizes_BN, *indices)
        return merged_BMC.to(features_BNC.dtype), sizes_BM.to(sizes_dtype)

    def unmerge(self, merged_BMC: Tensor) -> Tensor:
        """Give every token [B, N, C] the features of the row that it went into."""
        self._check("merged_BMC", merged_BMC, self.kept_BM.shape[1])
        return take_rows(merged_BMC, self.row_BN)

    def _check(self, name: str, features: Tensor, num_rows: int) -> None:
        check_floating(name, features, 3)
        if features.shape[:2] != (self.row_BN.shape[0], num_rows):
            admissible = (self.row_BN.shape[0], num_rows, "any")
            raise ValueError(f"{name} has shape {tuple(features.shape)}; admissible: {admissible}")
        check_device(name, features, "the match", self.row_BN)

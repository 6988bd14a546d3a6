"""Reducers: N patch features to k visual tokens, as a merge matrix or as kept indices, with where they came from.

Shapes: B images, N = height * width patches, k tokens, n = side of a square count, D width, h attention heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .counts import check_count, side_of
from .ops import pool

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reduction:
    """k tokens made from N patches.

    Exactly one of `matrix` ([k, N], or [B, h, k, N] where each of h heads mixes its own slice of the channels; B may
    be 1) and `kept_k` (indices) says how. `positions_k2` are (row, column) centres in patch units, `sizes_k` how many
    patches each token stands for; `fast` is a quicker way to compute `apply`, where the library has one.
    """

    matrix: Tensor | None
    kept_k: Tensor | None
    positions_k2: Tensor
    sizes_k: Tensor
    num_patches: int
    fast: Apply | None = None

    def apply(self, features_BND: Tensor) -> Tensor:
        """Reduce [B, N, D] to [B, k, D]."""
        if self.fast is not None:
            return self.fast(features_BND)
        if self.kept_k is not None:
            return features_BND[:, self.kept_k]
        assert self.matrix is not None
        if self.matrix.dim() == 2:
            return torch.einsum("kn,bnd->bkd", self.matrix, features_BND)
        features_BNhd = features_BND.unflatten(2, (self.matrix.shape[1], -1))
        return (self.matrix @ features_BNhd.transpose(1, 2)).transpose(1, 2).flatten(2)

    def unapply(self, tokens_BkD: Tensor) -> Tensor:
        """Spread [B, k, D] over [B, N, D]: each patch is the mean of its tokens, by weight; unused patches get 0."""
        if self.kept_k is not None:
            shape = (tokens_BkD.shape[0], self.num_patches, tokens_BkD.shape[2])
            return tokens_BkD.new_zeros(shape).index_copy(1, self.kept_k, tokens_BkD)
        assert self.matrix is not None
        mass = self.matrix.sum(-2, keepdim=True)
        spread = torch.where(mass > 0, self.matrix / mass.clamp_min(torch.finfo(mass.dtype).tiny), 0.0)
        if spread.dim() == 2:
            return torch.einsum("kn,bkd->bnd", spread, tokens_BkD)
        tokens_Bkhd = tokens_BkD.unflatten(2, (spread.shape[1], -1))
        return (spread.transpose(2, 3) @ tokens_Bkhd.transpose(1, 2)).transpose(1, 2).flatten(2)


class Reducer(Protocol):
    """Maps patch features of a grid to k tokens."""

    grid: tuple[int, int]

    def reduce(self, features_BND: Tensor, context: Any, k: int) -> Reduction:
        """How [B, N, D] becomes [B, k, D]; ValueError where k is not admissible."""
        ...

    def flops(self, k: int) -> int:
        """FLOPs in matrix products of one image's reduction (1 multiply-add = 2)."""
        ...


class PoolReducer:
    """Square average pooling of the patch grid. `nested` admits only sides that divide the grid (M3)."""

    def __init__(self, grid: tuple[int, int], method: str = "adaptive_avg", nested: bool = False) -> None:
        self.grid = grid
        self.method: Any = method
        self.kind = "pool_after" if nested else "pool"

    def side(self, k: int) -> int:
        return side_of(check_count(self.kind, self.grid, 0, k))

    def reduce(self, features_BND: Tensor, context: None, k: int) -> Reduction:
        """Pooling reads no context."""
        n = self.side(k)
        weights_nH, weights_nW = (self._axis(size, n, features_BND) for size in self.grid)
        matrix_kN = torch.einsum("ih,jw->ijhw", weights_nH, weights_nW).reshape(k, -1)
        return Reduction(
            matrix=matrix_kN,
            kept_k=None,
            positions_k2=matrix_kN @ patch_positions(self.grid, features_BND),
            sizes_k=(matrix_kN > 0).sum(1),
            num_patches=self.grid[0] * self.grid[1],
            fast=lambda x_BND: pool(x_BND, self.grid, n, self.method),
        )

    def _axis(self, size: int, n: int, like: Tensor) -> Tensor:
        """One axis' pooling weights [n, size]: the columns of the identity, pooled as a strip n high."""
        eye = torch.eye(size, dtype=like.dtype, device=like.device)
        strip_SNC = eye[None].repeat_interleave(n, dim=1).reshape(1, size * n, size)
        pooled = pool(strip_SNC, (size, n), n, self.method)
        return pooled.view(n, n, size)[:, 0]

    def flops(self, k: int) -> int:
        """Averages are no matrix products."""
        self.side(k)
        return 0


class KeepReducer:
    """Keeps every patch (LLaVA's baseline)."""

    def __init__(self, grid: tuple[int, int]) -> None:
        self.grid = grid

    def reduce(self, features_BND: Tensor, context: None, k: int) -> Reduction:
        check_count("mlp", self.grid, 0, k)
        return Reduction(
            matrix=None,
            kept_k=torch.arange(k, device=features_BND.device),
            positions_k2=patch_positions(self.grid, features_BND),
            sizes_k=torch.ones(k, dtype=torch.long, device=features_BND.device),
            num_patches=k,
            fast=lambda x_BND: x_BND,
        )

    def flops(self, k: int) -> int:
        check_count("mlp", self.grid, 0, k)
        return 0


@dataclass(frozen=True)
class QueryContext:
    """What prefix queries attend with: the k projected queries [k, E] and keys [B, N, E] (B may be 1)."""

    query_kE: Tensor
    key_BNE: Tensor


class QueryReducer:
    """Cross-attention of the first k learned queries; with position keys its weights do not depend on the image."""

    def __init__(self, grid: tuple[int, int], max_queries: int, num_heads: int, width: int) -> None:
        self.grid, self.max_queries, self.num_heads, self.width = grid, max_queries, num_heads, width

    def reduce(self, features_BND: Tensor, context: QueryContext, k: int) -> Reduction:
        """The weights come from `context` alone; `features_BND` are what they will be applied to."""
        check_count("query", self.grid, self.max_queries, k)
        query_hkd = context.query_kE.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        key_BhNd = context.key_BNE.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        scale = query_hkd.shape[2] ** -0.5
        weights_BhkN = (query_hkd * scale @ key_BhNd.transpose(2, 3)).softmax(-1)
        mean_kN = weights_BhkN.detach().mean((0, 1))
        return Reduction(
            matrix=weights_BhkN,
            kept_k=None,
            positions_k2=mean_kN @ patch_positions(self.grid, features_BND),
            sizes_k=1 / mean_kN.square().sum(1),
            num_patches=self.grid[0] * self.grid[1],
        )

    def flops(self, k: int) -> int:
        """Scores and weighted sum."""
        check_count("query", self.grid, self.max_queries, k)
        return 4 * k * self.grid[0] * self.grid[1] * self.width


def patch_positions(grid: tuple[int, int], like: Tensor) -> Tensor:
    """(row, column) of each patch [N, 2], in patch units."""
    rows, columns = (torch.arange(size, dtype=like.dtype, device=like.device) for size in grid)
    return torch.cartesian_prod(rows, columns)

"""What the ops are measured against: the same results from PyTorch alone, and from Liger-Kernel where it is installed.

Shapes: B batch, N patches, C channels, k tokens, E even and O odd tokens, R merged away.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokendial_kernels.cross_entropy import HAS_LIGER


def compiled(call: Callable[..., Any], mode: str = "max-autotune-no-cudagraphs") -> Callable[..., Any]:
    """The call under torch.compile at its strongest setting, one graph per shape."""
    torch._dynamo.reset()
    return torch.compile(call, mode=mode, dynamic=False, fullgraph=True)


def transposed_pool(features_BNC: Tensor, grid: tuple[int, int], n: int) -> Tensor:
    """Pooling as it is usually written: a transposed copy, then torch's pooling."""
    maps_BCHW = features_BNC.transpose(1, 2).reshape(features_BNC.shape[0], -1, *grid)
    return F.adaptive_avg_pool2d(maps_BCHW, n).flatten(2).transpose(1, 2).contiguous()


def tome_merge(metric_BNC: Tensor, features_BNC: Tensor, r: int) -> Tensor:
    """ToMe's matching and size-weighted merge as published: the whole score matrix, a sort, and scatters."""
    unit_BNC = metric_BNC / metric_BNC.norm(dim=-1, keepdim=True)
    scores_BEO = unit_BNC[:, ::2] @ unit_BNC[:, 1::2].transpose(-1, -2)
    best_BE, partner_BE = scores_BEO.max(dim=-1)
    order_BE1 = best_BE.argsort(dim=-1, descending=True)[..., None]
    kept_index, merged_index = order_BE1[:, r:], order_BE1[:, :r]
    target_index = partner_BE[..., None].gather(-2, merged_index)
    channels = features_BNC.shape[2]
    ones_BN1 = torch.ones_like(features_BNC[..., :1])

    def scatter(values: Tensor) -> Tensor:
        even, odd, width = values[:, ::2], values[:, 1::2], values.shape[2]
        kept = even.gather(1, kept_index.expand(-1, -1, width))
        moved = even.gather(1, merged_index.expand(-1, -1, width))
        odd = odd.scatter_reduce(1, target_index.expand(-1, -1, width), moved, reduce="sum")
        return torch.cat([kept, odd], dim=1)

    assert channels > 1
    return scatter(features_BNC * ones_BN1) / scatter(ones_BN1)


def sorted_prune(features_BNC: Tensor, scores_BN: Tensor, budget: int) -> Tensor:
    """Top-k, sort, gather."""
    positions_BK = scores_BN.topk(budget, dim=1).indices.sort(dim=1).values
    return features_BNC.gather(1, positions_BK[..., None].expand(-1, -1, features_BNC.shape[2]))


def liger_swiglu() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Liger's SwiGLU by name, or nothing where it is not installed."""
    if not HAS_LIGER:
        return {}
    from liger_kernel.ops import LigerSiLUMulFunction  # pyright: ignore[reportMissingImports]

    return {"liger": LigerSiLUMulFunction.apply}

"""Pooling to several counts, each followed by LayerNorm or RMSNorm, in plain PyTorch.

One count per entry of `ns`, as a step that trains several counts at once needs them (M3, arXiv 2405.17430; sandwich).
Shapes: B batch, N = height * width patches, C channels, n output side.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def pool_norm_reference(
    features_BNC: Tensor,
    grid: tuple[int, int],
    ns: Sequence[int],
    weight: Tensor,
    bias: Tensor | None = None,
    norm: str = "layer",
    eps: float = 1e-6,
    method: str = "adaptive_avg",
) -> tuple[Tensor, ...]:
    """Pool [B, N, C] to [B, n*n, C] for each n and normalise over C."""
    (height, width), (batch, _, channels) = grid, features_BNC.shape
    maps_BCHW = features_BNC.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    outputs = []
    for n in ns:
        resized = (-(-height // n) * n, -(-width // n) * n)
        maps_n = maps_BCHW
        if method == "resize_then_avg" and resized != (height, width):
            maps_n = F.interpolate(maps_BCHW, size=resized, mode="bilinear", align_corners=True)
        pooled_BkC = F.adaptive_avg_pool2d(maps_n, (n, n)).permute(0, 2, 3, 1).reshape(batch, n * n, channels)
        if norm == "layer":
            outputs.append(F.layer_norm(pooled_BkC, (channels,), weight, bias, eps))
        else:
            normed_BkC = F.rms_norm(pooled_BkC, (channels,), weight, eps)
            outputs.append(normed_BkC if bias is None else normed_BkC + bias)
    return tuple(outputs)

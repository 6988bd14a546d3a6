"""Pooling of a channels-last patch grid to n by n, in plain PyTorch.

`adaptive_avg` is torch's rule: window i covers rows floor(i H / n) to ceil((i + 1) H / n). `resize_then_avg` is that of
the TokenFLEX release (arXiv 2504.03154): bilinear resize (corners aligned) up to the next multiple of n, then plain
average. The two agree where n divides the grid. Three rows to two: windows {0, 1} and {1, 2}, so (1, 2, 6) -> (1.5, 4).
The channels-last view is what makes this fast on a CPU: no transpose is ever written.
Shapes: B batch, N = height * width patches, C channels, n output side.
"""

import torch.nn.functional as F
from torch import Tensor


def pool_reference(features_BNC: Tensor, grid: tuple[int, int], n: int, method: str = "adaptive_avg") -> Tensor:
    """Pool [B, N, C] to [B, n*n, C]."""
    (height, width), (batch, _, channels) = grid, features_BNC.shape
    maps_BCHW = features_BNC.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    if method == "resize_then_avg":
        resized = (-(-height // n) * n, -(-width // n) * n)
        if resized != (height, width):
            maps_BCHW = F.interpolate(maps_BCHW, size=resized, mode="bilinear", align_corners=True)
    pooled_BCnn = F.adaptive_avg_pool2d(maps_BCHW, (n, n))
    return pooled_BCnn.permute(0, 2, 3, 1).reshape(batch, n * n, channels)

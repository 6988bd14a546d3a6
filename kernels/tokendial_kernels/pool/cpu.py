"""Pooling on a CPU, for inference: a token is a weighted sum of its window's rows, as embedding_bag computes it.

FBGEMM's kernel behind it keeps a token in registers while its window is read; adaptive_avg_pool2d adds each patch to
memory. Where gradients are recorded the reference runs.
Shapes: B batch, N = height * width patches, C channels, n output side, R = B * N rows, T = B * n * n tokens,
W patches in all windows of an image.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tokendial_kernels.pool.windows import axis_bands


def pool_cpu(features_BNC: Tensor, grid: tuple[int, int], n: int, method: str) -> Tensor:
    """Pool float32 [B, N, C] to [B, n*n, C] without recording gradients."""
    batch, _, channels = features_BNC.shape
    patches, starts, weights = _windows(batch, *grid, n, method)
    rows_RC = features_BNC.reshape(-1, channels)
    tokens_TC = F.embedding_bag(
        patches, rows_RC, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
    return tokens_TC.view(batch, n * n, channels)


@lru_cache(maxsize=64)
def _windows(batch: int, height: int, width: int, n: int, method: str) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's patches [B*W] among all of the batch, where they start [B*n*n + 1], and their weights [B*W]."""
    patches, weights, starts = [], [], [0]
    for top, down in axis_bands(height, n, method):
        for left, across in axis_bands(width, n, method):
            patches += [(top + y) * width + left + x for y in range(len(down)) for x in range(len(across))]
            weights += [one * other for one in down for other in across]
            starts.append(len(patches))
    images_B1 = torch.arange(batch, dtype=torch.int32)[:, None]
    first_Bk = images_B1 * len(patches) + torch.tensor(starts[:-1], dtype=torch.int32)
    return (
        (images_B1 * (height * width) + torch.tensor(patches, dtype=torch.int32)).flatten(),
        torch.cat([first_Bk.flatten(), torch.tensor([batch * len(patches)], dtype=torch.int32)]),
        torch.tensor(weights).repeat(batch),
    )

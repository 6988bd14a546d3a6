"""The throw-away head that warms the tower: linear maps that say which digit is where, at three resolutions.

A feature must tell its digit as a patch, as the average over a cell, and (four digits, by place) as the average over a
quarter of the image; and its cell's row and column, without which no question about a cell finds its token.
Shapes: B mosaics, N = 12 x 12 patches, C tower width; 16 cells of 3 x 3 patches, 4 quarters of 2 x 2 cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokendial_workloads.digits.mosaic import GRID

HALF = GRID // 2


class CellHead(nn.Module):
    """Mean cross-entropy of each of the five readings, summed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, 10)
        self.cell = nn.Linear(width, 10 + 2 * GRID)
        self.quarter = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, HALF * HALF * 10))

    def forward(self, features_BNC: Tensor, cells_BG: Tensor) -> Tensor:
        """Loss of features [B, N, C] against the digits of cells [B, 16], in nats."""
        side = int(features_BNC.shape[1] ** 0.5)
        map_BCHW = features_BNC.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        digits_BHW = cells_BG.unflatten(1, (GRID, GRID))
        patches_BHW = digits_BHW.repeat_interleave(side // GRID, 1).repeat_interleave(side // GRID, 2)
        # digits by quarter, then by place in it: [B, half, half, half, half] to [B, 4, 4]
        quarters_B44 = digits_BHW.unflatten(2, (HALF, HALF)).unflatten(1, (HALF, HALF)).transpose(2, 3).flatten(3)
        cell_BGX = self.cell(_averaged(map_BCHW, GRID))
        quarter_BQX = self.quarter(_averaged(map_BCHW, HALF)).unflatten(2, (HALF * HALF, 10))
        place_G = torch.arange(GRID * GRID, device=cells_BG.device).expand_as(cells_BG)
        return (
            _nats(self.patch(features_BNC), patches_BHW)
            + _nats(cell_BGX[..., :10], cells_BG)
            + _nats(cell_BGX[..., 10 : 10 + GRID], place_G // GRID)
            + _nats(cell_BGX[..., 10 + GRID :], place_G % GRID)
            + _nats(quarter_BQX, quarters_B44)
        )


def _averaged(map_BCHW: Tensor, side: int) -> Tensor:
    """Means over a side x side grid, [B, side * side, C]."""
    return F.adaptive_avg_pool2d(map_BCHW, side).flatten(2).transpose(1, 2)


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1))

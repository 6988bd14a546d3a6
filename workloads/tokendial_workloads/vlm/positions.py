"""Fixed 2-D sin-cos position tables.

Half of the channels encode the row, half the column, each as sin then cos over frequencies 10000^(-i / (width / 4))
(MAE, arXiv 2111.06377; MQT's resampler uses the same table). Shapes: N = height * width patches, D channels.
"""

import torch
from torch import Tensor


def sincos_table(rows: int, columns: int, width: int, extent: tuple[float, float] | None = None) -> Tensor:
    """Table [rows * columns, width]; width must be a multiple of 4.

    `extent` stretches the coordinates to another grid's (height, width), so that two tables of different sizes that
    cover the same image agree in their frequencies.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width that is a multiple of 4, got {width}")
    height, breadth = extent or (rows, columns)
    row_R = (torch.arange(rows, dtype=torch.float64) + 0.5) * (height / rows) - 0.5
    column_C = (torch.arange(columns, dtype=torch.float64) + 0.5) * (breadth / columns) - 0.5
    row_ND = _axis(row_R, width // 2).repeat_interleave(columns, dim=0)
    column_ND = _axis(column_C, width // 2).repeat(rows, 1)
    return torch.cat([row_ND, column_ND], dim=1).float()


def _axis(position_P: Tensor, width: int) -> Tensor:
    frequency_F = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle_PF = position_P[:, None] * frequency_F
    return torch.cat([angle_PF.sin(), angle_PF.cos()], dim=1)

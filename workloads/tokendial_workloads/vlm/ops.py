"""The tensor ops the model runs on, in one place: an exported folder replaces this file by plain PyTorch copies."""

from tokendial_kernels.pool import pool
from tokendial_kernels.projector import projector

__all__ = ["pool", "projector"]

"""Argument checks shared by the ops: a ValueError names the argument, its value, and what is admissible.

They look at shapes, dtypes and devices only, so they cost about a microsecond, never wait for a GPU, and speak alike on
every path.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
METHODS = ("adaptive_avg", "resize_then_avg")
NORMS = ("layer", "rms")


def check_floating(name: str, tensor: Tensor, num_dims: int | None = None) -> None:
    """Refuse dtypes other than the four floating ones, empty tensors, and a rank other than num_dims."""
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} has dtype {tensor.dtype}; admissible: {', '.join(map(str, DTYPES))}")
    if num_dims is not None and tensor.dim() != num_dims:
        raise ValueError(f"{name} has {tensor.dim()} dimensions, shape {tuple(tensor.shape)}; admissible: {num_dims}")
    if tensor.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; admissible: every dimension at least 1")


def check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Refuse a tensor whose shape differs from `shape`."""
    if tensor.dim() != len(shape) or any(have != want for have, want in zip(tensor.shape, shape, strict=True)):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; admissible: {tuple(shape)}")


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse a tensor that is not where the other is."""
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}; admissible: {other.device}, the device of {other_name}")


def check_alike(name: str, tensor: Tensor, other_name: str, other: Tensor, shape: Sequence[int]) -> None:
    """Refuse a tensor whose shape differs from `shape`, or whose dtype or device differs from the other's."""
    check_shape(name, tensor, shape)
    if tensor.dtype != other.dtype:
        raise ValueError(f"{name} has dtype {tensor.dtype}; admissible: {other.dtype}, the dtype of {other_name}")
    check_device(name, tensor, other_name, other)


def is_integer(value: object) -> bool:
    """Whether a value is an int; True and False are not, though Python has them so."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_grid(features_BNC: Tensor, grid: tuple[int, int]) -> None:
    """Refuse a grid that is not two positive integers whose product is the number of patches."""
    if not isinstance(grid, tuple | list) or len(grid) != 2 or any(not is_integer(side) or side < 1 for side in grid):
        raise ValueError(f"grid is {grid!r}; admissible: (height, width), two integers of at least 1")
    num_patches = features_BNC.shape[1]
    if grid[0] * grid[1] != num_patches:
        raise ValueError(f"grid is {grid[0]}x{grid[1]}; admissible: height * width = {num_patches} patches")


def check_side(name: str, n: int, grid: tuple[int, int]) -> None:
    """Refuse an output side that is not an integer in [1, the shorter side of the grid]."""
    if not is_integer(n) or not 1 <= n <= min(grid):
        raise ValueError(f"{name} is {n!r}; admissible: an integer from 1 to {min(grid)} on a {grid[0]}x{grid[1]} grid")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; admissible: {', '.join(map(repr, choices))}")


def check_eps(eps: float) -> None:
    """Refuse a negative epsilon."""
    if not eps >= 0:
        raise ValueError(f"eps is {eps!r}; admissible: a number of at least 0")


def check_pooling(features_BNC: Tensor, grid: tuple[int, int], n: int, method: str) -> None:
    """Refuse whatever cannot be pooled to n by n."""
    check_floating("features_BNC", features_BNC, 3)
    check_grid(features_BNC, grid)
    check_side("n", n, grid)
    check_choice("method", method, METHODS)

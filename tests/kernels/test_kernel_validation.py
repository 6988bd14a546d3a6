"""Bad input is refused with a ValueError that names the argument and what is admissible, whatever the device.

Meta tensors stand for a device that is neither a CPU nor CUDA: checks look at shapes, dtypes and devices alone.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokendial_kernels.bipartite_merge import bipartite_merge
from tokendial_kernels.gather_prune import gather_prune
from tokendial_kernels.pool import pool
from tokendial_kernels.pool_norm import pool_norm
from tokendial_kernels.projector import projector
from tokendial_kernels.swiglu import swiglu
from torch import Tensor

SHAPES = {
    "features_BNC": (1, 9, 4),
    "norm_weight": (4,),
    "norm_bias": (4,),
    "gate_weight": (6, 4),
    "gate_bias": (6,),
    "up_weight": (6, 4),
    "up_bias": (6,),
    "down_weight": (5, 6),
    "down_bias": (5,),
}


def project(device: str, **changes: Any) -> Any:
    arguments: dict[str, Any] = {name: torch.ones(shape, device=device) for name, shape in SHAPES.items()}
    return projector(**{**arguments, "grid": (3, 3), "n": 2, **changes})


def ones(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, device=device, dtype=dtype)


Call = Callable[[str], Any]
REFUSED: list[tuple[Call, str]] = [
    (
        lambda d: pool(ones(1, 9, 4, device=d, dtype=torch.int64), (3, 3), 2),
        "features_BNC has dtype torch.int64; admiss",
    ),
    (lambda d: pool(ones(9, 4, device=d), (3, 3), 2), r"features_BNC has 2 dimensions, .* admissible: 3"),
    (
        lambda d: pool(ones(0, 9, 4, device=d), (3, 3), 2),
        "features_BNC has shape .* admissible: every dimension at least",
    ),
    (lambda d: pool(ones(1, 8, 4, device=d), (3, 3), 2), r"grid is 3x3; admissible: height \* width = 8 patches"),
    (lambda d: pool(ones(1, 9, 4, device=d), (3, 0), 2), r"grid is \(3, 0\); admissible: \(height, width\)"),
    (lambda d: pool(ones(1, 15, 4, device=d), (5, 3), 4), "n is 4; admissible: an integer from 1 to 3 on a 5x3 grid"),
    (lambda d: pool(ones(1, 9, 4, device=d), (3, 3), 0), "n is 0; admissible: an integer from 1 to 3"),
    (lambda d: pool(ones(1, 9, 4, device=d), (3, 3), 1.5), "n is 1.5; admissible: an integer"),  # pyright: ignore
    (lambda d: pool(ones(1, 9, 4, device=d), (3, 3), 2, "max"), "method is 'max'; admissible: 'adap"),  # pyright: ignore
    (lambda d: swiglu(ones(2, 3, device=d), ones(2, 4, device=d)), r"up has shape \(2, 4\); admissible: \(2, 3\)"),
    (
        lambda d: swiglu(ones(2, device=d), ones(2, device=d, dtype=torch.float16)),
        "up has dtype torch.float16; admissible: torch.float32, the dtype of gate",
    ),
    (
        lambda d: swiglu(ones(2, device=d), ones(2, device="cpu" if d == "meta" else "meta")),
        "up is on .*; admissible: ",
    ),
    (lambda d: pool_norm(ones(1, 9, 4, device=d), (3, 3), (), ones(4, device=d)), "ns is empty; admissible: at least"),
    (
        lambda d: pool_norm(ones(1, 9, 4, device=d), (3, 3), (2, 9), ones(4, device=d)),
        "ns is 9; admissible: an integer",
    ),
    (
        lambda d: pool_norm(ones(1, 9, 4, device=d), (3, 3), (2,), ones(3, device=d)),
        r"weight has .* admissible: \(4,\)",
    ),
    (
        lambda d: pool_norm(ones(1, 9, 4, device=d), (3, 3), (2,), ones(4, device=d), ones(4, 1, device=d)),
        r"bias has shape \(4, 1\); admissible: \(4,\)",
    ),
    (
        lambda d: pool_norm(ones(1, 9, 4, device=d), (3, 3), (2,), ones(4, device=d), norm="batch"),  # pyright: ignore
        "norm is 'batch'; admissible: 'layer', 'rms'",
    ),
    (
        lambda d: pool_norm(ones(1, 9, 4, device=d), (3, 3), (2,), ones(4, device=d), eps=-1.0),
        "eps is -1.0; admissible: a number of at least 0",
    ),
    (lambda d: project(d, n=4), "n is 4; admissible: an integer from 1 to 3"),
    (lambda d: project(d, eps=float("nan")), "eps is nan; admissible"),
    (lambda d: project(d, norm_weight=ones(5, device=d)), r"norm_weight has shape \(5,\); admissible: \(4,\)"),
    (lambda d: project(d, gate_weight=ones(6, 5, device=d)), r"gate_weight has .* admissible: \(6, 4\)"),
    (lambda d: project(d, up_weight=ones(7, 4, device=d)), r"up_weight has shape \(7, 4\); admissible: \(6, 4\)"),
    (lambda d: project(d, up_bias=ones(4, device=d)), r"up_bias has shape \(4,\); admissible: \(6,\)"),
    (lambda d: project(d, down_weight=ones(5, 7, device=d)), r"down_weight has .* admissible: \(5, 6\)"),
    (
        lambda d: project(d, down_bias=ones(5, device=d, dtype=torch.bfloat16)),
        "down_bias has dtype torch.bfloat16; admissible: torch.float32, the dtype of features_BNC",
    ),
    (lambda d: bipartite_merge(ones(1, 9, 4, device=d), 5), "r is 5; admissible: an integer from 0 to 4, half of 9"),
    (lambda d: bipartite_merge(ones(1, 9, 4, device=d), -1), "r is -1; admissible: an integer from 0 to 4"),
    (lambda d: bipartite_merge(ones(9, 4, device=d), 1), "metric_BNC has 2 dimensions"),
    (
        lambda d: gather_prune(ones(1, 9, 4, device=d), ones(1, 8, device=d), 2),
        r"scores_BN has shape \(1, 8\); admissible: \(1, 9\)",
    ),
    (lambda d: gather_prune(ones(1, 9, 4, device=d), ones(1, 9, device=d), 10), "budget is 10; admissible: .* 1 to 9"),
    (lambda d: gather_prune(ones(1, 9, 4, device=d), ones(1, 9, device=d), [2, 3]), "budget has 2 entries; admissible"),
    (lambda d: gather_prune(ones(1, 9, 4, device=d), ones(1, 9, device=d), True), "budget is True; admissible: an int"),
    (
        lambda d: gather_prune(ones(1, 9, 4, device=d), ones(1, 9, device=d), 2.0),  # pyright: ignore
        "budget is 2.0; admissible: one integer, or one per item, 1",
    ),
    (lambda d: bipartite_merge(ones(1, 9, 4, device=d), True), "r is True; admissible: an integer from 0 to 4"),
    (lambda d: pool(ones(1, 9, 4, device=d), (3, 3), True), "n is True; admissible: an integer from 1 to 3"),
    (lambda d: pool(ones(1, 9, 4, device=d), 3, 2), r"grid is 3; admissible: \(height, width\)"),  # pyright: ignore
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_bad_input_is_refused_by_name(device: str, call: Call, message: str):
    with pytest.raises(ValueError, match=message):
        call(device)


def test_good_input_passes_on_a_device_with_no_kernels():
    assert project("meta").shape == (1, 4, 5)
    assert pool(ones(1, 9, 4, device="meta"), (3, 3), 3).shape == (1, 9, 4)


def test_merge_refuses_features_of_another_length():
    merge = bipartite_merge(torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(0)), 2)
    with pytest.raises(ValueError, match=r"features_BNC has shape \(1, 5, 2\); admissible: \(1, 6, 'any'\)"):
        merge.merge(torch.ones(1, 5, 2))
    with pytest.raises(ValueError, match=r"merged_BMC has shape \(1, 6, 2\); admissible: \(1, 4, 'any'\)"):
        merge.unmerge(torch.ones(1, 6, 2))
    with pytest.raises(ValueError, match=r"sizes_BN has shape \(1, 5\); admissible: \(1, 6\)"):
        merge.merge(torch.ones(1, 6, 2), torch.ones(1, 5))

"""pool_norm against pooling and normalising by hand in float64, and its gradients."""

from typing import Any

import pytest
import torch
from tokendial_kernels.pool import pool
from tokendial_kernels.pool_norm import pool_norm
from tokendial_kernels.pool_norm.op import pool_norm_op
from torch import Tensor

METHODS = ("adaptive_avg", "resize_then_avg")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_hand(pooled: Tensor, weight: Tensor, bias: Tensor | None, norm: str, eps: float) -> Tensor:
    centred = pooled - pooled.mean(-1, keepdim=True) if norm == "layer" else pooled
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return scaled if bias is None else scaled + bias


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no_bias"])
def test_each_count_is_pooled_and_normalised(norm: Any, method: Any, has_bias: bool):
    features, weight = draw(2, 35, 6), draw(6, seed=1)
    bias = draw(6, seed=2) if has_bias else None
    outputs = pool_norm(features, (7, 5), (1, 3, 5), weight, bias, norm=norm, eps=1e-5, method=method)
    rows, _, _ = pool_norm_op(features, 7, 5, [1, 3, 5], weight, bias, norm, 1e-5, method)
    for n, output, part in zip((1, 3, 5), outputs, rows.split([2, 18, 50]), strict=True):
        wanted = by_hand(pool(features, (7, 5), n, method), weight, bias, norm, 1e-5)
        torch.testing.assert_close(output, wanted)
        torch.testing.assert_close(part.view_as(wanted), wanted)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_op_passes_gradcheck_and_opcheck(norm: str):
    features, weight, bias = draw(2, 12, 4), draw(4, seed=1), draw(4, seed=2)
    for tensor in (features, weight, bias):
        tensor.requires_grad_()
    arguments = (norm, 1e-3, "resize_then_avg")
    assert torch.autograd.gradcheck(
        lambda x, w, b: pool_norm_op(x, 4, 3, [1, 2, 3], w, b, *arguments)[0], (features, weight, bias)
    )
    torch.library.opcheck(pool_norm_op, (features, 4, 3, [2], weight, bias, *arguments))
    torch.library.opcheck(pool_norm_op, (features.detach(), 4, 3, [1, 3], weight.detach(), None, *arguments))

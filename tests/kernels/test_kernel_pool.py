"""pool against torch's own rule, the release's rule, and its separable gradient.

Shapes: B batch, N = height * width patches, C channels, n output side.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokendial_kernels.pool import pool
from tokendial_kernels.pool.cpu import pool_cpu
from tokendial_kernels.pool.op import pool_op
from tokendial_kernels.pool.reference import pool_reference
from tokendial_kernels.pool.windows import axis_bands, axis_matrix, transposed_bands
from tokendial_kernels.route import HAS_ONEDNN
from torch import Tensor

METHODS = ("adaptive_avg", "resize_then_avg")


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def release_rule(features_BNC: Tensor, height: int, width: int, n: int) -> Tensor:
    maps = features_BNC.transpose(1, 2).reshape(features_BNC.shape[0], -1, height, width).contiguous()
    size = (-(-height // n) * n, -(-width // n) * n)
    if size != (height, width):
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    return F.avg_pool2d(maps, (size[0] // n, size[1] // n)).flatten(2).transpose(1, 2)


def test_three_rows_to_two_overlap_in_the_middle():
    pooled = pool(torch.tensor([1.0, 2.0, 6.0]).expand(3, 3).T.reshape(1, 9, 1), (3, 3), 2)
    assert pooled.flatten().tolist() == [1.5, 1.5, 4.0, 4.0]


@pytest.mark.parametrize("size", range(1, 41))
def test_adaptive_windows_are_torchs_for_every_n(size: int):
    features_BNC = draw(2, size, 3)
    for n in range(1, size + 1):
        by_bands = axis_matrix(size, n, "adaptive_avg", features_BNC) @ features_BNC
        by_torch = F.adaptive_avg_pool1d(features_BNC.transpose(1, 2), n).transpose(1, 2)
        torch.testing.assert_close(by_bands, by_torch)


@pytest.mark.parametrize("grid", [(1, 1), (5, 5), (7, 4), (12, 12)], ids=str)
def test_both_methods_equal_their_source_for_every_n(grid: tuple[int, int]):
    features_BNC = draw(2, grid[0] * grid[1], 3)
    for n in range(1, min(grid) + 1):
        maps = features_BNC.transpose(1, 2).reshape(2, 3, *grid).contiguous()
        adaptive = F.adaptive_avg_pool2d(maps, n).flatten(2).transpose(1, 2)
        torch.testing.assert_close(pool(features_BNC, grid, n), adaptive)
        torch.testing.assert_close(pool(features_BNC, grid, n, "resize_then_avg"), release_rule(features_BNC, *grid, n))


def test_the_methods_agree_exactly_where_n_divides_the_grid():
    features_BNC = draw(1, 144, 2)
    for n in range(1, 13):
        same = torch.allclose(pool(features_BNC, (12, 12), n), pool(features_BNC, (12, 12), n, "resize_then_avg"))
        assert same == (12 % n == 0), n


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_stays_constant_and_transposed_bands_are_the_transpose(method: Any):
    for size in (1, 5, 12, 27):
        for n in range(1, size + 1):
            matrix = axis_matrix(size, n, method, torch.ones(1, dtype=torch.float64))
            torch.testing.assert_close(matrix.sum(1), torch.ones(n, dtype=torch.float64))
            for column, (start, weights) in enumerate(transposed_bands(size, n, method)):
                assert matrix[start : start + len(weights), column].tolist() == pytest.approx(weights)
                assert matrix[:, column].count_nonzero() == len(weights)
            assert len(axis_bands(size, n, method)) == n


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", [(1, 1), (5, 3), (12, 12)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_sums_of_rows_are_the_reference_for_every_n(batch: int, grid: tuple[int, int], method: Any):
    features_BNC = draw(batch, grid[0] * grid[1] + 1, 17, dtype=torch.float32)[:, 1:]
    assert batch == 1 or not features_BNC.is_contiguous()
    for n in range(1, min(grid) + 1):
        wanted = pool_reference(features_BNC.double(), grid, n, method)
        for route in (pool_cpu, pool_reference):
            error = (route(features_BNC, grid, n, method).double() - wanted).norm() / wanted.norm()
            assert error < 1e-6, route


def test_without_gradients_float32_is_pooled_by_sums_of_rows(monkeypatch: pytest.MonkeyPatch):
    routes = []
    monkeypatch.setattr("tokendial_kernels.pool.pool_cpu", lambda *_: routes.append("sums"))
    features_BNC = draw(1, 9, 4, dtype=torch.float32)
    pool(features_BNC, (3, 3), 2)
    assert routes == (["sums"] if HAS_ONEDNN else [])
    pool(features_BNC.requires_grad_(), (3, 3), 2).sum().backward()
    with torch.no_grad():
        pool(features_BNC, (3, 3), 2)
    assert routes == (["sums"] * 2 if HAS_ONEDNN else [])


def test_what_is_not_a_number_stays_in_the_windows_that_hold_it():
    features_BNC = draw(2, 16, 4, dtype=torch.float32)
    features_BNC[0, 0, 1] = torch.nan
    assert pool_cpu(features_BNC, (4, 4), 2, "adaptive_avg").isnan().nonzero().tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_lower_precision_stays_near_float64(method: Any, dtype: torch.dtype):
    features_BNC = draw(2, 35, 8, dtype=dtype)
    wanted = pool(features_BNC.double(), (7, 5), 3, method)
    error = (pool(features_BNC, (7, 5), 3, method).double() - wanted).norm() / wanted.norm()
    # The resized route rounds once more, after the interpolation.
    assert error < 3 * torch.finfo(dtype).eps


def test_strided_features_give_what_contiguous_ones_give():
    whole = draw(2, 36, 10)
    strided = whole[:, :, 1:9:2]
    torch.testing.assert_close(pool(strided, (6, 6), 4), pool(strided.contiguous(), (6, 6), 4))
    transposed = draw(2, 4, 36).transpose(1, 2)
    torch.testing.assert_close(pool(transposed, (6, 6), 4), pool(transposed.contiguous(), (6, 6), 4))


@pytest.mark.parametrize("method", METHODS)
def test_op_passes_gradcheck_twice_and_opcheck(method: Any):
    features_BNC = draw(2, 15, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pool_op(x, 5, 3, 2, method), features_BNC)
    assert torch.autograd.gradgradcheck(lambda x: pool_op(x, 5, 3, 2, method), features_BNC)
    assert torch.autograd.gradcheck(lambda x: pool(x, (5, 3), 2, method), features_BNC)
    torch.library.opcheck(pool_op, (features_BNC.detach(), 5, 3, 2, method))
    torch.library.opcheck(pool_op, (features_BNC, 5, 3, 2, method))

"""The Triton kernels against float64 references: forward, every gradient, odd shapes, strided inputs, poisoned outputs.

Not collected by name: test_kernel_interpreter.py runs it on a CPU under TRITON_INTERPRET=1, test_kernel_gpu.py on CUDA.
The interpreter is wrong in bfloat16, so that dtype joins on CUDA only.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokendial_kernels.bipartite_merge.kernel import launch_best_match, launch_choose, launch_merge
from tokendial_kernels.bipartite_merge.reference import choose_reference, merge_reference
from tokendial_kernels.gather_prune.kernel import launch_gather
from tokendial_kernels.pool.kernel import launch_pool, launch_spread
from tokendial_kernels.pool.reference import pool_reference
from tokendial_kernels.pool_norm.kernel import launch_pool_norm, launch_pool_norm_backward
from tokendial_kernels.pool_norm.reference import pool_norm_reference
from tokendial_kernels.projector.kernel import launch_gated_linear
from tokendial_kernels.swiglu.kernel import launch_swiglu, launch_swiglu_backward
from tokendial_kernels.swiglu.reference import swiglu_reference
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = [torch.float32, torch.float16] if INTERPRETED else list(TOLERANCE)
# Units in the last place that swiglu may be off. In float32 the sigmoid is made of ex2.approx and div.full, 2 each.
ULPS = {torch.float32: 8, torch.float16: 2, torch.bfloat16: 2}
METHODS: list[Any] = ["adaptive_avg", "resize_then_avg"]

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def poisoned(launch: Callable[..., Any], *arguments: Any) -> Any:
    """Launch with uninitialised memory holding NaN, so that a place the kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(2, device=DEVICE).isnan().all()
        return launch(*arguments)
    finally:
        torch.use_deterministic_algorithms(False)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)


def exactly(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double().requires_grad_() for tensor in tensors]


def assert_near(result: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert result.dtype == dtype
    assert result.shape == wanted.shape
    error = (result.double() - wanted).norm() / wanted.norm()
    assert error < TOLERANCE[dtype], f"norm-wise error {error:.2e}"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("batch", "grid", "n", "channels"),
    [(1, (1, 1), 1, 5), (2, (5, 3), 3, 6), (1, (5, 5), 5, 17), (2, (4, 5), 1, 8), (1, (7, 4), 2, 16)],
    ids=str,
)
def test_pool_and_its_gradient(
    dtype: torch.dtype, method: str, batch: int, grid: tuple[int, int], n: int, channels: int
):
    height, width = grid
    features, grad = draw(batch, grid[0] * grid[1], channels, dtype=dtype), draw(batch, n * n, channels, dtype=dtype)
    (exact,) = exactly(features)
    wanted = pool_reference(exact, grid, n, method)
    assert_near(poisoned(launch_pool, features, height, width, n, method), wanted.detach(), dtype)
    wanted.backward(grad.double())
    spread = poisoned(launch_spread, grad.flatten(0, 1), batch, height, width, (n,), method, dtype)
    assert exact.grad is not None
    assert_near(spread, exact.grad, dtype)


def test_pool_reads_strided_features_and_several_channel_blocks(dtype: torch.dtype):
    whole = draw(3, 6, 1030, dtype=dtype)
    for strided in (whole[::2, :, :1026], whole[:1, :, ::2]):
        wanted = pool_reference(strided.double(), (3, 2), 2, "adaptive_avg")
        assert_near(poisoned(launch_pool, strided, 3, 2, 2, "adaptive_avg"), wanted, dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize(
    ("batch", "grid", "ns", "has_bias"), [(2, (4, 3), (1, 3, 2), True), (1, (5, 5), (2,), False)], ids=str
)
def test_pool_norm_and_its_gradients(
    dtype: Any, method: str, norm: str, batch: int, grid: tuple[int, int], ns: tuple[int, ...], has_bias: bool
):
    channels, eps, (height, width) = 11, 1e-3, grid
    features, weight = draw(batch, grid[0] * grid[1], channels, dtype=dtype), draw(channels, dtype=dtype, seed=1)
    bias = draw(channels, dtype=dtype, seed=2)
    exact = exactly(features, weight, bias)
    outputs = pool_norm_reference(exact[0], grid, ns, exact[1], exact[2] if has_bias else None, norm, eps, method)
    wanted = torch.cat([output.flatten(0, 1) for output in outputs])
    rows, mean, rstd = poisoned(
        launch_pool_norm, features, height, width, ns, weight, bias if has_bias else None, norm, eps, method
    )
    assert_near(rows, wanted.detach(), dtype)
    grad = draw(*wanted.shape, dtype=dtype, seed=3)
    (wanted + 0 * exact[2]).backward(grad.double())
    results = poisoned(launch_pool_norm_backward, grad, features, mean, rstd, height, width, ns, weight, norm, method)
    for result, leaf in zip(results[: 2 + has_bias], exact, strict=False):
        assert leaf.grad is not None
        assert_near(result, leaf.grad, dtype)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 1025)], ids=str)
def test_swiglu_and_its_gradients(dtype: torch.dtype, shape: tuple[int, ...]):
    gate, up, grad = (draw(*shape, dtype=dtype, seed=seed) for seed in range(3))
    exact = exactly(gate, up)
    wanted = swiglu_reference(*exact)
    assert_near(poisoned(launch_swiglu, gate, up), wanted.detach(), dtype)
    wanted.backward(grad.double())
    for result, leaf in zip(poisoned(launch_swiglu_backward, grad, gate, up), exact, strict=True):
        assert leaf.grad is not None
        assert_near(result, leaf.grad, dtype)


def test_swiglu_rounds_once(dtype: torch.dtype):
    gate, up = draw(64, 33, dtype=dtype), draw(64, 33, dtype=dtype, seed=1)
    wanted = swiglu_reference(gate.double(), up.double())
    distance = (poisoned(launch_swiglu, gate, up).double() - wanted.to(dtype).double()).abs()
    assert (distance <= ULPS[dtype] * torch.finfo(dtype).eps * wanted.abs() + torch.finfo(dtype).smallest_normal).all()


def test_swiglu_reads_halves_of_one_projection(dtype: torch.dtype):
    gate, up = draw(2, 3, 14, dtype=dtype).chunk(2, dim=-1)
    grad = draw(2, 3, 7, dtype=dtype, seed=1)
    exact = exactly(gate, up)
    wanted = swiglu_reference(*exact)
    assert_near(poisoned(launch_swiglu, gate, up), wanted.detach(), dtype)
    wanted.backward(grad.double())
    for result, leaf in zip(poisoned(launch_swiglu_backward, grad, gate, up), exact, strict=True):
        assert leaf.grad is not None
        assert_near(result, leaf.grad, dtype)


@pytest.mark.parametrize(("num_rows", "channels", "hidden"), [(1, 3, 5), (33, 40, 37), (70, 17, 65)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no_bias"])
def test_gated_linear_and_what_it_keeps(dtype: torch.dtype, num_rows: int, channels: int, hidden: int, has_bias: bool):
    rows = draw(num_rows, channels + 2, dtype=dtype)[:, :channels]
    gate_weight, up_weight = draw(hidden, channels, dtype=dtype, seed=1), draw(hidden, channels, dtype=dtype, seed=2)
    biases = [draw(hidden, dtype=dtype, seed=seed) if has_bias else None for seed in (3, 4)]
    exact = [None if bias is None else bias.double() for bias in biases]
    gate = F.linear(rows.double(), gate_weight.double(), exact[0])
    up = F.linear(rows.double(), up_weight.double(), exact[1])
    result = poisoned(launch_gated_linear, rows, gate_weight, biases[0], up_weight, biases[1], True)
    for kept, wanted in zip(result, (F.silu(gate) * up, gate, up), strict=True):
        assert_near(kept, wanted, dtype)
    alone, no_gate, no_up = poisoned(launch_gated_linear, rows, gate_weight, biases[0], up_weight, biases[1], False)
    assert torch.equal(alone, result[0])
    assert no_gate.shape == no_up.shape == (0, hidden)


@pytest.mark.parametrize(("batch", "num_tokens", "channels"), [(1, 2, 3), (2, 7, 5), (1, 131, 70)], ids=str)
def test_best_match_is_the_row_maximum_of_cosines(dtype: torch.dtype, batch: int, num_tokens: int, channels: int):
    metric = draw(batch, num_tokens, channels + 1, dtype=dtype)[:, :, :channels]
    unit = F.normalize(metric.double(), dim=-1)
    scores = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    best, partner = poisoned(launch_best_match, metric)
    assert (best.amax(1).double() - scores.amax(2)).abs().max() < 1e-5
    chosen = scores.gather(2, partner.gather(1, best.argmax(1, keepdim=True)).transpose(1, 2)).squeeze(2)
    assert (chosen - scores.amax(2)).abs().max() < 1e-5


@pytest.mark.parametrize(("batch", "num_tokens", "r"), [(1, 2, 1), (2, 7, 3), (3, 12, 2), (2, 41, 17)], ids=str)
def test_choice_is_the_references_ties_included(dtype: torch.dtype, batch: int, num_tokens: int, r: int):
    num_even, num_odd = num_tokens - num_tokens // 2, num_tokens // 2
    generator = torch.Generator().manual_seed(0)
    # Few values, so that many are tied; the earlier token is to win, as in a stable sort.
    best = (torch.randint(4, (batch, 3, num_even), generator=generator) / 4).to(DEVICE)
    partner = torch.randint(num_odd, (batch, 3, num_even), generator=generator).to(DEVICE)
    top, tile = best.max(dim=1)
    wanted_partner = partner.gather(1, tile.unsqueeze(1)).squeeze(1)
    order = top - torch.arange(num_even, device=DEVICE) * 1e-4
    wanted = choose_reference(order, wanted_partner, r, num_tokens)
    for result, expected in zip(poisoned(launch_choose, best, partner, r, num_tokens), wanted, strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("has_sizes", [True, False], ids=["sizes", "no_sizes"])
def test_merge_is_the_size_weighted_mean(dtype: torch.dtype, has_sizes: bool):
    features = draw(2, 9, 7, dtype=dtype)[:, :, :6]
    sizes = draw(2, 9, dtype=dtype, seed=1).abs() + 1 if has_sizes else None
    # Tokens 0, 4 and 6 go into token 3 of the first item: several sources of one row.
    best, partner = torch.zeros(2, 5), torch.tensor([[1, 3, 1, 1, 2], [0, 1, 2, 3, 3]])
    best[:, [0, 2, 3]] = 1.0
    source, destination, kept, row = (index.to(DEVICE) for index in choose_reference(best, partner, 3, 9))
    merged, totals = poisoned(launch_merge, features, sizes, source, destination, kept)
    wanted, wanted_totals = merge_reference(
        features.double(), None if sizes is None else sizes.double(), source, kept, row
    )
    assert_near(merged, wanted, dtype)
    torch.testing.assert_close(totals.double(), wanted_totals)


def test_gather_moves_rows_and_leaves_zeros_for_minus_one(dtype: torch.dtype):
    source = draw(2, 5, 9, dtype=dtype)[:, :, :7]
    index = torch.tensor([[0, 4, -1], [3, -1, 1]], device=DEVICE)
    nothing = torch.zeros_like(source[0, 0])
    first = torch.stack([source[0, 0], source[0, 4], nothing])
    wanted = torch.stack([first, torch.stack([source[1, 3], nothing, source[1, 1]])])
    assert torch.equal(poisoned(launch_gather, source, index), wanted)

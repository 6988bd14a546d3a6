"""What only a GPU can show: the suite compiled for real, bfloat16, the ops at full shapes, compile, graphs, Liger.

Shapes: B batch, N patches, C channels, k tokens.
"""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokendial_kernels.bipartite_merge import bipartite_merge
from tokendial_kernels.bipartite_merge.op import match_op, merge_op
from tokendial_kernels.bipartite_merge.reference import best_match_reference
from tokendial_kernels.cross_entropy import HAS_LIGER, cross_entropy
from tokendial_kernels.gather_prune import gather_prune
from tokendial_kernels.gather_prune.op import gather_op
from tokendial_kernels.graph import CallGraph
from tokendial_kernels.pool import pool
from tokendial_kernels.pool.op import pool_op
from tokendial_kernels.pool.reference import pool_reference
from tokendial_kernels.pool_norm import pool_norm
from tokendial_kernels.pool_norm.op import pool_norm_op
from tokendial_kernels.pool_norm.reference import pool_norm_reference
from tokendial_kernels.projector import projector
from tokendial_kernels.projector.op import gated_linear_op
from tokendial_kernels.projector.reference import projector_reference
from tokendial_kernels.swiglu import swiglu
from tokendial_kernels.swiglu.op import swiglu_op
from tokendial_kernels.swiglu.reference import swiglu_reference
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SUITE = Path(__file__).with_name("kernel_suite.py")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
BY_DTYPE = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
METHODS: list[Any] = ["adaptive_avg", "resize_then_avg"]
GRID = (32, 32)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to("cuda", dtype)


def draw_weights(dtype: torch.dtype, channels: int = 512, hidden: int = 768, width: int = 640) -> Any:
    shapes = [(channels,), (channels,), (hidden, channels), (hidden,), (hidden, channels), (hidden,), (width, hidden)]
    scales = [1.0, 1.0, channels**-0.5, 0.1, channels**-0.5, 0.1, hidden**-0.5, 0.1]
    shapes.append((width,))
    return [
        draw(*shape, dtype=dtype, seed=seed, scale=scale)
        for seed, (shape, scale) in enumerate(zip(shapes, scales, strict=True), start=1)
    ]


def assert_forward_and_gradients(ours: Callable[..., Any], reference: Callable[..., Any], *inputs: Tensor) -> None:
    """Against the reference in float64, norm-wise, with the tolerance of the inputs' dtype."""
    dtype = inputs[0].dtype
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    output, wanted = ours(*leaves), reference(*exact)
    grad = draw(*wanted.shape, dtype=dtype, seed=99)
    results = [output, *torch.autograd.grad(output, leaves, grad)]
    targets = [wanted, *torch.autograd.grad(wanted, exact, grad.double())]
    for result, target in zip(results, targets, strict=True):
        assert result.dtype == dtype
        error = (result.double() - target).norm() / target.norm()
        assert error < TOLERANCE[dtype], f"norm-wise error {error:.2e}"


def run_suite(dtype: torch.dtype) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pytest", str(SUITE), "-k", str(dtype)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def test_the_suite_passes_compiled_for_this_gpu():
    # Compiling takes most of its time, so the dtypes go side by side.
    with ThreadPoolExecutor() as pool:
        for done in pool.map(run_suite, TOLERANCE):
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
            assert " passed" in done.stdout


@BY_DTYPE
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 8, 12, 16, 32])
def test_pool_at_full_shape(dtype: torch.dtype, method: Any, n: int):
    features_BNC = draw(2, 1024, 1152, dtype=dtype)
    assert_forward_and_gradients(
        lambda x: pool(x, GRID, n, method), lambda x: pool_reference(x, GRID, n, method), features_BNC
    )


@BY_DTYPE
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_pool_norm_of_three_counts_at_full_shape(dtype: torch.dtype, norm: Any):
    assert_forward_and_gradients(
        lambda x, w, b: torch.cat(pool_norm(x, GRID, (8, 12, 16), w, b, norm=norm), dim=1),
        lambda x, w, b: torch.cat(pool_norm_reference(x, GRID, (8, 12, 16), w, b, norm), dim=1),
        draw(2, 1024, 1152, dtype=dtype),
        draw(1152, dtype=dtype, seed=1),
        draw(1152, dtype=dtype, seed=2),
    )


@BY_DTYPE
def test_swiglu_at_full_shape(dtype: torch.dtype):
    gate, up = draw(512, 3584, dtype=dtype), draw(512, 3584, dtype=dtype, seed=1)
    assert_forward_and_gradients(swiglu, swiglu_reference, gate, up)


def test_swiglu_beyond_two_to_the_31_elements():
    gate = torch.ones(2**31 + 4096, dtype=torch.bfloat16, device="cuda")
    output = swiglu(gate, gate)
    assert output[-1] == output[0] == swiglu_reference(gate[:1], gate[:1])[0]


@BY_DTYPE
@pytest.mark.parametrize(("batch", "n"), [(1, 3), (1, 8), (1, 16), (4, 16)], ids=str)
def test_projector_and_its_nine_gradients(dtype: torch.dtype, batch: int, n: int):
    assert_forward_and_gradients(
        lambda x, *w: projector(x, GRID, n, *w),
        lambda x, *w: projector_reference(x, GRID, n, *w),
        draw(batch, 1024, 512, dtype=dtype),
        *draw_weights(dtype),
    )


@BY_DTYPE
def test_matching_merging_and_pruning_agree_with_float64(dtype: torch.dtype):
    features_BNC = draw(2, 1023, 640, dtype=dtype)
    merge = bipartite_merge(features_BNC, 256)
    best_BE, _ = best_match_reference(features_BNC.double())
    unit_BNC = F.normalize(features_BNC.double(), dim=-1)
    pairs = [
        unit_BNC.gather(1, index[..., None].expand(-1, -1, 640)) for index in (merge.source_BR, merge.destination_BR)
    ]
    # Near ties may be resolved differently, so the cosines of the chosen pairs are compared and not the pairs.
    torch.testing.assert_close((pairs[0] * pairs[1]).sum(2), best_BE.topk(256, dim=1).values, atol=1e-5, rtol=0)
    merged_BMC, sizes_BM = merge.merge(features_BNC)
    exact_BMC, _ = merge.merge(features_BNC.double())  # float64 takes the library route
    assert (merged_BMC.double() - exact_BMC).norm() / exact_BMC.norm() < TOLERANCE[dtype]
    assert sizes_BM.float().sum(1).tolist() == [1023, 1023]
    assert merge.unmerge(merged_BMC).shape == features_BNC.shape
    pruned = gather_prune(features_BNC, features_BNC[:, :, 0].contiguous(), [300, 17])
    on_cpu = gather_prune(features_BNC.cpu(), features_BNC[:, :, 0].cpu(), [300, 17])
    scores_BK = features_BNC[:, :, 0].gather(1, pruned.positions_BK.clamp(min=0))
    # Equal scores may be resolved differently, so scores are compared and not positions.
    for item, budget in enumerate((300, 17)):
        on_cpu_scores = features_BNC[item, :, 0].cpu()[on_cpu.positions_BK[item, :budget]]
        assert torch.equal(scores_BK[item, :budget].sort().values.cpu(), on_cpu_scores.sort().values)
    assert not pruned.features_BKC[1, 17:].any()


@pytest.mark.parametrize(("batch", "n"), [(1, 8), (2, 16)], ids=str)
def test_a_graph_replays_what_the_launches_give(batch: int, n: int):
    weights = draw_weights(torch.bfloat16)
    example = draw(batch, 1024, 512, dtype=torch.bfloat16)
    graph = CallGraph(lambda features: projector(features, GRID, n, *weights), example)
    for seed in (1, 2):
        features_BNC = draw(batch, 1024, 512, dtype=torch.bfloat16, seed=seed)
        with torch.no_grad():
            assert torch.equal(graph(features_BNC), projector(features_BNC, GRID, n, *weights))
    with pytest.raises(ValueError, match="tensor has shape"):
        graph(draw(batch + 1, 1024, 512, dtype=torch.bfloat16))


def test_the_same_inputs_give_the_same_bits():
    inputs = [draw(2, 1024, 512, dtype=torch.bfloat16), *draw_weights(torch.bfloat16)]
    leaves = [tensor.requires_grad_() for tensor in inputs]

    def run() -> tuple[Tensor, ...]:
        output = projector(leaves[0], GRID, 12, *leaves[1:])
        return output, *torch.autograd.grad(output, leaves, torch.ones_like(output))

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_ops_pass_opcheck_on_cuda():
    features = draw(2, 12, 16).requires_grad_()
    weight, matrix = draw(16, seed=1).requires_grad_(), draw(24, 16, seed=2).requires_grad_()
    torch.library.opcheck(pool_op, (features, 4, 3, 2, "adaptive_avg"))
    torch.library.opcheck(pool_norm_op, (features, 4, 3, [1, 3], weight, None, "layer", 1e-6, "resize_then_avg"))
    torch.library.opcheck(swiglu_op, (features, features.detach().clone().requires_grad_()))
    rows, other = features.detach().flatten(0, 1).requires_grad_(), matrix.detach().clone().requires_grad_()
    torch.library.opcheck(gated_linear_op, (rows, matrix, None, other, None, True))
    torch.library.opcheck(match_op, (features.detach(), 3))
    merge = bipartite_merge(features.detach(), 3)
    indices = merge.source_BR, merge.destination_BR, merge.kept_BM, merge.row_BN
    torch.library.opcheck(merge_op, (features, None, *indices))
    torch.library.opcheck(gather_op, (features, torch.tensor([[0, 3], [5, -1]], device="cuda")))


# Inductor remarks that float32 products could be rounded to TensorFloat32; here they must not be.
@pytest.mark.filterwarnings("ignore:TensorFloat32")
def test_a_training_step_compiles_into_one_graph():
    features_BNC, weights = draw(2, 1024, 512), draw_weights(torch.float32)

    def loss(x: Tensor) -> Tensor:
        merged, _ = bipartite_merge(x.detach(), 64).merge(x)
        pruned = gather_prune(x, x[:, :, 0].detach(), 32).features_BKC
        tokens = projector(x, GRID, 8, *weights)
        return tokens.square().mean() + merged.square().mean() + pruned.square().mean() + pool(x, GRID, 4).mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=False)
    gradients = []
    for run in (loss, compiled):
        x = features_BNC.clone().requires_grad_()
        gradients.append(torch.autograd.grad(run(x), x)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_devices_may_not_be_mixed():
    with pytest.raises(ValueError, match="up is on cpu; admissible: cuda:0, the device of gate"):
        swiglu(draw(4), torch.ones(4))


@pytest.mark.skipif(not HAS_LIGER, reason="needs liger-kernel")
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_cross_entropy_by_liger_agrees_with_pytorch(reduction: Any):
    logits, labels = draw(64, 5000, scale=3.0), torch.randint(5000, (64,), device="cuda")
    labels[::7] = -100
    leaves = [logits.clone().requires_grad_(), logits.clone().requires_grad_()]
    wanted = F.cross_entropy(leaves[0], labels, reduction=reduction)
    wanted_grad = torch.autograd.grad(wanted.sum(), leaves[0])[0]
    result = cross_entropy(leaves[1] * 1.0, labels, reduction=reduction)
    result_grad = torch.autograd.grad(result.sum(), leaves[1])[0]
    torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result_grad, wanted_grad, rtol=1e-4, atol=1e-6)

"""The GPU's contests: bfloat16, 32x32 patches of 1,024 channels, hidden and width 3,584.

Memory-bound ops have a copy of as many bytes as floor, the projector its three matrix products by cuBLAS.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokendial_kernels.bench import peers
from tokendial_kernels.bench.contest import EAGER, FLOOR, OURS, Call, Contest, Target
from tokendial_kernels.bipartite_merge import bipartite_merge
from tokendial_kernels.cross_entropy import HAS_LIGER, cross_entropy
from tokendial_kernels.gather_prune import gather_prune
from tokendial_kernels.graph import CallGraph
from tokendial_kernels.pool import pool
from tokendial_kernels.pool.reference import pool_reference
from tokendial_kernels.pool_norm import pool_norm
from tokendial_kernels.pool_norm.reference import pool_norm_reference
from tokendial_kernels.projector import projector
from tokendial_kernels.projector.reference import projector_reference
from tokendial_kernels.swiglu import swiglu
from tokendial_kernels.swiglu.reference import swiglu_reference

GRID, CHANNELS, HIDDEN, WIDTH, BATCH = (32, 32), 1024, 3584, 3584, 16
NS = (8, 12, 16)


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal bfloat16 values with a stated seed."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16) * scale


def copy_floor(moved_bytes: int) -> Call:
    """A copy that reads and writes `moved_bytes` in all."""
    source = draw(moved_bytes // 4)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def backward_of(forward: Callable[..., Any], *inputs: Tensor) -> Call:
    """The backward alone of a forward over the inputs, which is run once here."""
    # Liger writes gradients into what it was given, which other providers read too.
    leaves = [leaf.clone().requires_grad_() for leaf in inputs]
    outputs = forward(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [torch.ones_like(output) for output in outputs]
    return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)


def contests(with_compiled: bool) -> list[Callable[[], Contest]]:
    """All of them, to be made one at a time so that their memory is returned; those with compiled targets first."""
    return [
        *(partial(_projector, batch, n, with_compiled) for batch, n in ((1, 8), (1, 12), (1, 16), (BATCH, 16))),
        *(partial(_pool, n, with_compiled) for n in NS),
        *(partial(_pool_backward, n) for n in NS),
        partial(_pool_norm, with_compiled),
        _pool_norm_backward,
        partial(_swiglu, with_compiled),
        _swiglu_backward,
        partial(_projector_backward, with_compiled),
        *(partial(_bipartite_merge, batch, with_compiled) for batch in (1, BATCH)),
        partial(_gather_prune, with_compiled),
        *([_cross_entropy] if HAS_LIGER else []),
    ]


def _with_compiled(calls: dict[str, Call], call: Callable[[], Any], wanted: bool) -> dict[str, Call]:
    return {**calls, "compiled": peers.compiled(call)} if wanted else calls


def _pool(n: int, with_compiled: bool) -> Contest:
    features_BNC, moved = draw(BATCH, 1024, CHANNELS), _pool_bytes(n)
    calls: dict[str, Call] = {
        EAGER: lambda: pool_reference(features_BNC, GRID, n),
        "eager, transposed": lambda: peers.transposed_pool(features_BNC, GRID, n),
        OURS: lambda: pool(features_BNC, GRID, n),
    }
    calls = _with_compiled(calls, calls[EAGER], with_compiled)
    target = (Target(FLOOR, 0.92),)
    return Contest("pool", "forward", _pool_shape(n), copy_floor(moved), "copy", calls, target, moved)


def _pool_backward(n: int) -> Contest:
    features_BNC, moved = draw(BATCH, 1024, CHANNELS), _pool_bytes(n)
    calls: dict[str, Call] = {
        EAGER: backward_of(lambda x: pool_reference(x, GRID, n), features_BNC),
        OURS: backward_of(lambda x: pool(x, GRID, n), features_BNC),
    }
    target = (Target(FLOOR, 0.80),)
    return Contest("pool", "backward", _pool_shape(n), copy_floor(moved), "copy", calls, target, moved)


def _pool_bytes(*ns: int) -> int:
    return BATCH * (1024 + sum(n * n for n in ns)) * CHANNELS * 2


def _pool_shape(*ns: int) -> str:
    return f"{BATCH}x1024x{CHANNELS} to {', '.join(str(n * n) for n in ns)}"


def _pool_norm(with_compiled: bool) -> Contest:
    features_BNC, weight, moved = draw(BATCH, 1024, CHANNELS), draw(CHANNELS), _pool_bytes(*NS)
    calls: dict[str, Call] = {
        EAGER: lambda: pool_norm_reference(features_BNC, GRID, NS, weight, weight),
        OURS: lambda: pool_norm(features_BNC, GRID, NS, weight, weight),
    }
    calls = _with_compiled(calls, calls[EAGER], with_compiled)
    return Contest("pool_norm", "forward", _pool_shape(*NS), copy_floor(moved), "copy", calls, (), moved)


def _pool_norm_backward() -> Contest:
    weight, moved = draw(CHANNELS), 2 * _pool_bytes(*NS)
    inputs = draw(BATCH, 1024, CHANNELS), weight, weight
    calls: dict[str, Call] = {
        EAGER: backward_of(lambda x, w, b: pool_norm_reference(x, GRID, NS, w, b), *inputs),
        OURS: backward_of(lambda x, w, b: pool_norm(x, GRID, NS, w, b), *inputs),
    }
    return Contest("pool_norm", "backward", _pool_shape(*NS), copy_floor(moved), "copy", calls, (), moved)


def _gate_and_up() -> tuple[Tensor, Tensor, str]:
    return draw(8192, 32768), draw(8192, 32768), "8192x32768"


def _swiglu(with_compiled: bool) -> Contest:
    gate, up, shape = _gate_and_up()
    moved = 3 * gate.numel() * 2
    calls: dict[str, Call] = {EAGER: lambda: swiglu_reference(gate, up), OURS: lambda: swiglu(gate, up)}
    calls |= {name: lambda call=call: call(gate, up) for name, call in peers.liger_swiglu().items()}
    calls = _with_compiled(calls, calls[EAGER], with_compiled)
    target = (Target("liger", 0.98),)
    return Contest("swiglu", "forward", shape, copy_floor(moved), "copy", calls, target, moved)


def _swiglu_backward() -> Contest:
    gate, up, shape = _gate_and_up()
    moved = 5 * gate.numel() * 2
    calls = {EAGER: backward_of(swiglu_reference, gate, up), OURS: backward_of(swiglu, gate, up)}
    calls |= {name: backward_of(call, gate, up) for name, call in peers.liger_swiglu().items()}
    target = (Target("liger", 1.1),)
    return Contest("swiglu", "backward", shape, copy_floor(moved), "copy", calls, target, moved)


def _projector_weights() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    gate, up = draw(HIDDEN, CHANNELS, scale=CHANNELS**-0.5), draw(HIDDEN, CHANNELS, scale=CHANNELS**-0.5)
    down, norm = draw(WIDTH, HIDDEN, scale=HIDDEN**-0.5), draw(CHANNELS)
    return norm, norm, gate, draw(HIDDEN), up, draw(HIDDEN), down, draw(WIDTH)


def _products(num_rows: int, weights: tuple[Tensor, ...]) -> Call:
    rows_kC, rows_kH = draw(num_rows, CHANNELS), draw(num_rows, HIDDEN)
    return lambda: (F.linear(rows_kC, weights[2]), F.linear(rows_kC, weights[4]), F.linear(rows_kH, weights[6]))


def _projector(batch: int, n: int, with_compiled: bool) -> Contest:
    features_BNC, weights = draw(batch, 1024, CHANNELS), _projector_weights()

    def eager() -> Tensor:
        return projector_reference(features_BNC, GRID, n, *weights)

    graph = CallGraph(lambda features: projector(features, GRID, n, *weights), features_BNC)
    calls: dict[str, Call] = {
        EAGER: torch.no_grad()(eager),
        "tokendial, launches": torch.no_grad()(lambda: projector(features_BNC, GRID, n, *weights)),
        OURS: lambda: graph(features_BNC),
    }
    if with_compiled:
        # With its own CUDA graph, and weights that it need not copy into it, as those of a module.
        for tensor in (features_BNC, *weights):
            torch._dynamo.mark_static_address(tensor)
        calls["compiled"] = peers.compiled(torch.no_grad()(eager), mode="max-autotune")
    shape = f"{batch}x1024x{CHANNELS} to {n * n}, hidden {HIDDEN}, width {WIDTH}"
    target = (Target("compiled", 1.3 if batch == 1 else 1.1),)
    return Contest("projector", "forward", shape, _products(batch * n * n, weights), "cuBLAS products", calls, target)


def _projector_backward(with_compiled: bool) -> Contest:
    n, inputs = 16, (draw(BATCH, 1024, CHANNELS), *_projector_weights())

    def both(call: Callable[..., Tensor]) -> Call:
        leaves: Any = [leaf.detach().requires_grad_() for leaf in inputs]

        def run() -> Any:
            output = call(leaves[0], GRID, n, *leaves[1:])
            return torch.autograd.grad(output, leaves, torch.ones_like(output))

        return run

    calls = {EAGER: both(projector_reference), OURS: both(projector)}
    if with_compiled:
        calls["compiled"] = both(peers.compiled(projector_reference))
    shape = f"{BATCH}x1024x{CHANNELS} to {n * n}, hidden {HIDDEN}, width {WIDTH}"
    products = _products(BATCH * n * n, inputs[1:])

    def floor() -> None:
        # The backward's products are twice the forward's.
        for _ in range(3):
            products()

    return Contest("projector", "forward and backward", shape, floor, "cuBLAS products", calls)


def _bipartite_merge(batch: int, with_compiled: bool) -> Contest:
    features_BNC, r = draw(batch, 1024, CHANNELS), 256
    moved = batch * (1024 + 768) * CHANNELS * 2
    calls: dict[str, Call] = {
        EAGER: lambda: peers.tome_merge(features_BNC, features_BNC, r),
        OURS: lambda: bipartite_merge(features_BNC, r).merge(features_BNC),
    }
    calls = _with_compiled(calls, calls[EAGER], with_compiled)
    shape = f"{batch}x1024x{CHANNELS}, {r} merged away"
    return Contest("bipartite_merge", "forward", shape, copy_floor(moved), "copy", calls, (Target(EAGER, 3.0),), moved)


def _gather_prune(with_compiled: bool) -> Contest:
    features_BNC, scores_BN = draw(BATCH, 1024, CHANNELS), draw(BATCH, 1024)
    moved = BATCH * 2 * 256 * CHANNELS * 2
    calls: dict[str, Call] = {
        EAGER: lambda: peers.sorted_prune(features_BNC, scores_BN, 256),
        OURS: lambda: gather_prune(features_BNC, scores_BN, 256),
    }
    calls = _with_compiled(calls, calls[EAGER], with_compiled)
    shape = f"{BATCH}x1024x{CHANNELS} to 256"
    return Contest("gather_prune", "forward", shape, copy_floor(moved), "copy", calls, (), moved)


def _cross_entropy() -> Contest:
    num_tokens, vocabulary = 4096, 152064
    logits_TV = draw(num_tokens, vocabulary)
    labels_T = torch.randint(vocabulary, (num_tokens,), device="cuda")
    moved = 3 * logits_TV.numel() * 2

    def both(call: Callable[[Tensor], Tensor]) -> Call:
        own_TV = logits_TV.clone()

        def run() -> Any:
            leaf = own_TV.detach().requires_grad_()
            return torch.autograd.grad(call(leaf), leaf)

        return run

    calls = {
        EAGER: both(lambda logits: F.cross_entropy(logits.float(), labels_T, reduction="sum")),
        OURS: both(lambda logits: cross_entropy(logits, labels_T)),
    }
    shape = f"{num_tokens} tokens, vocabulary {vocabulary}"
    return Contest("cross_entropy (Liger)", "forward and backward", shape, copy_floor(moved), "copy", calls, (), moved)

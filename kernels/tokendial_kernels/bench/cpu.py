"""The CPU's contests: float32, one thread, 1,024 patches of 512 channels, hidden 1,024, width 896.

The projector's floor is its three matrix products alone, by the faster of PyTorch's two libraries on this machine;
other floors are a copy of as many bytes as must be read and written.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tokendial_kernels.bench import peers
from tokendial_kernels.bench.contest import EAGER, FLOOR, OURS, Call, Contest, Target, time_on_cpu
from tokendial_kernels.bipartite_merge import bipartite_merge
from tokendial_kernels.gather_prune import gather_prune
from tokendial_kernels.pool import pool
from tokendial_kernels.pool.reference import pool_reference
from tokendial_kernels.pool_norm import pool_norm
from tokendial_kernels.pool_norm.reference import pool_norm_reference
from tokendial_kernels.projector import projector
from tokendial_kernels.projector.reference import projector_reference
from tokendial_kernels.swiglu import swiglu
from tokendial_kernels.swiglu.reference import swiglu_reference

GRID, CHANNELS, HIDDEN, WIDTH = (32, 32), 512, 1024, 896
NS = (8, 12, 16)


def draw(*shape: int) -> Tensor:
    """Normal values with a stated seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def copy_floor(moved_bytes: int) -> Call:
    """A copy that reads and writes `moved_bytes` in all."""
    source = draw(moved_bytes // 8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def contests(with_compiled: bool) -> list[Callable[[], Contest]]:
    """All of them, to be made one at a time."""
    return [
        *(partial(_pool, n, with_compiled) for n in NS),
        partial(_pool_norm, with_compiled),
        partial(_swiglu, with_compiled),
        *(partial(_projector, n, with_compiled) for n in NS),
        _bipartite_merge,
        _gather_prune,
    ]


def _pool(n: int, with_compiled: bool) -> Contest:
    features_BNC = draw(1, 1024, CHANNELS)
    moved = (1024 + n * n) * CHANNELS * 4
    providers: dict[str, Call] = {
        EAGER: lambda: pool_reference(features_BNC, GRID, n),
        "eager, transposed": lambda: peers.transposed_pool(features_BNC, GRID, n),
        OURS: lambda: pool(features_BNC, GRID, n),
    }
    if with_compiled:
        call = peers.compiled(pool_reference)
        providers["compiled"] = lambda: call(features_BNC, GRID, n)
    return Contest("pool", "forward", f"1x1024x{CHANNELS} to {n * n}", copy_floor(moved), "copy", providers, (), moved)


def _pool_norm(with_compiled: bool) -> Contest:
    features_BNC, weight = draw(1, 1024, CHANNELS), draw(CHANNELS)
    moved = (1024 + sum(n * n for n in NS)) * CHANNELS * 4
    providers: dict[str, Call] = {
        EAGER: lambda: pool_norm_reference(features_BNC, GRID, NS, weight, weight),
        OURS: lambda: pool_norm(features_BNC, GRID, NS, weight, weight),
    }
    if with_compiled:
        call = peers.compiled(pool_norm_reference)
        providers["compiled"] = lambda: call(features_BNC, GRID, NS, weight, weight)
    shape = f"1x1024x{CHANNELS} to 64, 144 and 256"
    return Contest("pool_norm", "forward", shape, copy_floor(moved), "copy", providers, (), moved)


def _swiglu(with_compiled: bool) -> Contest:
    gate, up = draw(1, 256, HIDDEN), draw(1, 256, HIDDEN)
    moved = 3 * gate.numel() * 4
    providers: dict[str, Call] = {EAGER: lambda: swiglu_reference(gate, up), OURS: lambda: swiglu(gate, up)}
    if with_compiled:
        call = peers.compiled(swiglu_reference)
        providers["compiled"] = lambda: call(gate, up)
    return Contest("swiglu", "forward", f"256x{HIDDEN}", copy_floor(moved), "copy", providers, (), moved)


def faster_products(num_rows: int, weights: tuple[Tensor, Tensor, Tensor]) -> tuple[Call, str]:
    """The three matrix products of the projector, by the library that is faster here, and its name."""
    rows_kC, rows_kH = draw(num_rows, CHANNELS), draw(num_rows, HIDDEN)
    gate, up, down = weights
    fused = torch.ops.mkldnn._linear_pointwise

    def library() -> None:
        for rows, weight in ((rows_kC, gate), (rows_kC, up), (rows_kH, down)):
            F.linear(rows, weight)

    def onednn() -> None:
        for rows, weight in ((rows_kC, gate), (rows_kC, up), (rows_kH, down)):
            fused(rows, weight, None, "none", [], "")

    choices: dict[str, Call] = {"products by F.linear": library, "products by oneDNN": onednn}
    timings = time_on_cpu(choices, num_rounds=11)
    name = min(choices, key=lambda choice: timings[choice].median_ms)
    return choices[name], name


def _projector(n: int, with_compiled: bool) -> Contest:
    features_BNC, norm = draw(1, 1024, CHANNELS), draw(CHANNELS)
    gate, up, down = draw(HIDDEN, CHANNELS) / 23, draw(HIDDEN, CHANNELS) / 23, draw(WIDTH, HIDDEN) / 32
    biases = draw(HIDDEN), draw(HIDDEN), draw(WIDTH)
    weights = norm, norm, gate, biases[0], up, biases[1], down, biases[2]
    floor, floor_name = faster_products(n * n, (gate, up, down))
    providers: dict[str, Call] = {
        EAGER: lambda: projector_reference(features_BNC, GRID, n, *weights),
        OURS: lambda: projector(features_BNC, GRID, n, *weights),
    }
    if with_compiled:
        call = peers.compiled(projector_reference)
        providers["compiled"] = lambda: call(features_BNC, GRID, n, *weights)
    targets = (Target(EAGER, 1.15), Target(FLOOR, 0.90 if n * n >= 256 else 0.85))
    shape = f"1x1024x{CHANNELS} to {n * n}, hidden {HIDDEN}, width {WIDTH}"
    return Contest("projector", "forward", shape, floor, floor_name, providers, targets)


def _bipartite_merge() -> Contest:
    features_BNC, r = draw(1, 1024, CHANNELS), 256
    moved = (1024 + 768) * CHANNELS * 4
    providers: dict[str, Call] = {
        EAGER: lambda: peers.tome_merge(features_BNC, features_BNC, r),
        OURS: lambda: bipartite_merge(features_BNC, r).merge(features_BNC),
    }
    shape = f"1x1024x{CHANNELS}, {r} merged away"
    return Contest("bipartite_merge", "forward", shape, copy_floor(moved), "copy", providers, (), moved)


def _gather_prune() -> Contest:
    features_BNC, scores_BN = draw(1, 1024, CHANNELS), draw(1, 1024)
    moved = 2 * 256 * CHANNELS * 4
    providers: dict[str, Call] = {
        EAGER: lambda: peers.sorted_prune(features_BNC, scores_BN, 256),
        OURS: lambda: gather_prune(features_BNC, scores_BN, 256),
    }
    shape = f"1x1024x{CHANNELS} to 256"
    return Contest("gather_prune", "forward", shape, copy_floor(moved), "copy", providers, (), moved)

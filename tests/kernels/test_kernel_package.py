"""The package as others use it: without triton, under torch.compile, copied away, and cheap to call."""

import ast
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokendial_kernels
import torch
from tokendial_kernels.bipartite_merge import bipartite_merge
from tokendial_kernels.bipartite_merge.op import merge_op
from tokendial_kernels.gather_prune import gather_prune
from tokendial_kernels.pool import pool
from tokendial_kernels.pool.op import pool_op
from tokendial_kernels.pool_norm import pool_norm
from tokendial_kernels.pool_norm.op import pool_norm_op
from tokendial_kernels.projector import projector
from tokendial_kernels.projector.op import gated_linear_op
from tokendial_kernels.swiglu import swiglu
from tokendial_kernels.swiglu.op import swiglu_op
from torch import Tensor

PACKAGE = Path(tokendial_kernels.__file__).parent

USES_EVERY_OP = """
import sys, torch
sys.modules["triton"] = None  # any import of triton now raises
from tokendial_kernels import OPS
from tokendial_kernels.bipartite_merge import bipartite_merge
from tokendial_kernels.gather_prune import gather_prune
from tokendial_kernels.graph import CallGraph
from tokendial_kernels.pool import pool
from tokendial_kernels.pool_norm import pool_norm
from tokendial_kernels.projector import projector
from tokendial_kernels.swiglu import swiglu
x = torch.randn(1, 9, 4, requires_grad=True)
w, v, b = torch.randn(6, 4), torch.randn(5, 6), torch.ones(4)
for record in (True, False):
    with torch.set_grad_enabled(record):
        outputs = [pool(x, (3, 3), 2), *pool_norm(x, (3, 3), (1, 2), b), swiglu(x, x)]
        outputs += [projector(x, (3, 3), 2, b, b, w, None, w, None, v, None)]
        outputs += [bipartite_merge(x, 2).merge(x)[0], gather_prune(x, x[:, :, 0], 3).features_BKC]
        if record:
            sum(output.sum() for output in outputs).backward()
assert sys.modules["triton"] is None
print("used", len(OPS), "ops")
"""


def test_every_op_runs_forward_and_backward_where_triton_cannot_be_imported():
    done = subprocess.run([sys.executable, "-c", USES_EVERY_OP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "used 6 ops" in done.stdout


def test_importing_the_package_alone_does_not_import_torch():
    code = "import sys, tokendial_kernels; assert 'torch' not in sys.modules and 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("op", tokendial_kernels.OPS)
def test_each_op_is_a_folder_whose_reference_needs_torch_alone(op: str):
    assert {"__init__.py", "reference.py"} <= {path.name for path in (PACKAGE / op).iterdir()}
    tree = ast.parse((PACKAGE / op / "reference.py").read_text())
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {str(name).split(".")[0] for name in imported} <= {"torch", "collections", "typing"}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FEATURES, WEIGHTS = draw(2, 15, 4), [draw(6, 4, seed=1), draw(6, 4, seed=2), draw(5, 6, seed=3), draw(4, seed=4)]

MATCH = bipartite_merge(FEATURES, 3)
INDICES = MATCH.source_BR, MATCH.destination_BR, MATCH.kept_BM, MATCH.row_BN


def project(x: Tensor) -> Tensor:
    gate, up, down, norm = WEIGHTS
    return projector(x, (5, 3), 2, norm, norm, gate, None, up, None, down, None)


COMPILED: dict[str, Callable[[Tensor], Any]] = {
    "pool": lambda x: pool(x, (5, 3), 2),
    "pool_op": lambda x: pool_op(x, 5, 3, 2, "resize_then_avg"),
    "pool_norm": lambda x: torch.cat(pool_norm(x, (5, 3), (1, 3), WEIGHTS[3], norm="rms"), dim=1),
    "pool_norm_op": lambda x: pool_norm_op(x, 5, 3, [1, 3], WEIGHTS[3], None, "rms", 1e-6, "adaptive_avg")[0],
    "swiglu": lambda x: swiglu(x, 2 * x),
    "swiglu_op": lambda x: swiglu_op(x, 2 * x),
    "projector": project,
    "gated_linear_op": lambda x: gated_linear_op(x.flatten(0, 1), WEIGHTS[0], None, WEIGHTS[1], None, True)[0],
    "bipartite_merge": lambda x: bipartite_merge(x.detach(), 3).merge(x)[0],
    "merge_op": lambda x: merge_op(x, None, *INDICES)[0],
    "gather_prune": lambda x: gather_prune(x, x[:, :, 0].detach(), [1, 4]).features_BKC,
}


@pytest.mark.parametrize("name", COMPILED)
def test_forward_and_gradient_are_the_same_under_fullgraph_compile(name: str):
    call = COMPILED[name]
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=False)
    results = []
    for run in (call, compiled):
        x = FEATURES.clone().requires_grad_()
        output = run(x)
        (output * output).sum().backward()
        results.append((output.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1])
    with torch.no_grad():
        torch.testing.assert_close(compiled(FEATURES), call(FEATURES))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["projector", "pool_op"])
def test_inductor_compiles_the_whole_graph(name: str):
    torch._dynamo.reset()
    compiled = torch.compile(COMPILED[name], fullgraph=True, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(FEATURES), COMPILED[name](FEATURES))


def test_checks_and_dispatch_cost_a_cpu_call_little():
    """The best of many pooling calls is within 60 microseconds of the library call it makes; a custom op costs more."""
    features, view = draw(1, 16, 8), draw(1, 16, 8).view(1, 4, 4, 8).permute(0, 3, 1, 2)

    def best_us(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(300):
            start = time.perf_counter_ns()
            call()
            times.append(time.perf_counter_ns() - start)
        return min(times) / 1000

    ours = best_us(lambda: pool(features, (4, 4), 2))
    library = best_us(lambda: torch.nn.functional.adaptive_avg_pool2d(view, 2))
    assert ours - library < 60

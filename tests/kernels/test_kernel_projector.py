"""projector: every CPU route against the reference in float64, its gradients, and what it refuses.

Shapes: B batch, N patches, C channels, H hidden width, D output width, k tokens.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokendial_kernels.flops import FLOP_FORMULAS
from tokendial_kernels.graph import CallGraph
from tokendial_kernels.pool import pool
from tokendial_kernels.pool_norm import pool_norm
from tokendial_kernels.projector import projector
from tokendial_kernels.projector.cpu import projector_cpu
from tokendial_kernels.projector.op import gated_linear_op
from tokendial_kernels.projector.reference import projector_reference
from tokendial_kernels.swiglu import swiglu
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def draw_weights(dtype: torch.dtype, channels: int = 6, hidden: int = 10, width: int = 7) -> Any:
    shapes = [(channels,), (channels,), (hidden, channels), (hidden,), (hidden, channels), (hidden,), (width, hidden)]
    return [draw(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate([*shapes, (width,)], start=1)]


@pytest.mark.parametrize("method", ["adaptive_avg", "resize_then_avg"])
@pytest.mark.parametrize("n", [1, 3, 5])
def test_it_is_pool_norm_gate_up_down(method: Any, n: int):
    features_BNC, weights = draw(2, 35, 6), draw_weights(torch.float64)
    (normed_BkC,) = pool_norm(features_BNC, (7, 5), (n,), weights[0], weights[1], method=method)
    torch.testing.assert_close(
        normed_BkC,
        F.layer_norm(pool(features_BNC, (7, 5), n, method), (6,), weights[0], weights[1], 1e-6),
    )
    gate, up = normed_BkC @ weights[2].T + weights[3], normed_BkC @ weights[4].T + weights[5]
    wanted = swiglu(gate, up) @ weights[6].T + weights[7]
    torch.testing.assert_close(projector(features_BNC, (7, 5), n, *weights, method=method), wanted)


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("batch", [1, 3])
def test_fused_cpu_route_is_within_1e_5_of_float64(has_bias: bool, batch: int):
    features_BNC, weights = draw(batch, 64, 48, dtype=torch.float32), draw_weights(torch.float32, 48, 80, 24)
    arguments: Any = [
        weight if has_bias or weight.dim() == 2 or index == 0 else None for index, weight in enumerate(weights)
    ]
    doubles: Any = [None if weight is None else weight.double() for weight in arguments]
    wanted = projector_reference(features_BNC.double(), (8, 8), 3, *doubles)
    result = projector_cpu(features_BNC, (8, 8), 3, *arguments, eps=1e-6, method="adaptive_avg")
    assert torch.equal(result, projector(features_BNC, (8, 8), 3, *arguments))
    assert result.shape == wanted.shape == (batch, 9, 24)
    assert (result.double() - wanted).norm() / wanted.norm() < 1e-5


def test_training_and_inference_routes_agree():
    features_BNC, weights = draw(2, 36, 6, dtype=torch.float32), draw_weights(torch.float32)
    inference = projector(features_BNC, (6, 6), 4, *weights)
    training = projector(features_BNC.requires_grad_(), (6, 6), 4, *weights)
    assert training.requires_grad
    assert not inference.requires_grad
    torch.testing.assert_close(inference, training.detach())


def test_all_nine_gradients_pass_gradcheck():
    inputs = [draw(1, 6, 3), *draw_weights(torch.float64, 3, 4, 2)]
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *w: projector(x, (3, 2), 2, *w, eps=1e-3), inputs)


def test_gated_linear_op_passes_gradcheck_and_opcheck():
    rows_MC = draw(5, 3)
    gate_weight, up_weight, bias = draw(4, 3, seed=1), draw(4, 3, seed=2), draw(4, seed=3)
    inputs = [tensor.requires_grad_() for tensor in (rows_MC, gate_weight, bias, up_weight, bias.clone().detach())]
    assert torch.autograd.gradcheck(lambda *tensors: gated_linear_op(*tensors, True)[0], inputs)
    torch.library.opcheck(gated_linear_op, (*inputs, True))
    torch.library.opcheck(
        gated_linear_op, (rows_MC.detach(), gate_weight.detach(), None, up_weight.detach(), None, False)
    )


def test_graph_refuses_a_cpu_by_name():
    with pytest.raises(ValueError, match="example is on cpu; admissible: a CUDA device"):
        CallGraph(lambda features: features, draw(1, 36, 6))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_the_flop_formulas_count_every_route_alike(bias: bool):
    features_BNC, weights = draw(2, 36, 6, dtype=torch.float32), draw_weights(torch.float32)
    if not bias:
        weights[3] = weights[5] = weights[7] = None
    products = 2 * (2 * 9) * (2 * 6 * 10 + 10 * 7)
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as training:
        projector(features_BNC.clone().requires_grad_(), (6, 6), 3, *weights)
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as inference:
        projector(features_BNC, (6, 6), 3, *weights)
    rows_MC = features_BNC.flatten(0, 1)[:18]
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as fused:
        gated_linear_op(rows_MC, weights[2], weights[3], weights[4], weights[5], False)
    assert training.get_total_flops() == inference.get_total_flops() == products
    assert fused.get_total_flops() == 2 * 18 * 2 * 6 * 10

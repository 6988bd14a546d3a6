"""Projectors against their sources: TokenFLEX layer by layer, MQT's prefix queries, M3's nested pooling."""

import pytest
import torch
import torch.nn.functional as F
from tokendial_workloads.vlm.build import build_model
from tokendial_workloads.vlm.model import TokendialForConditionalGeneration
from tokendial_workloads.vlm.projectors import PoolProjector, QueryProjector
from torch import nn
from vlm_tiny import COUNTS, tiny_batch, tiny_model_config, tiny_task


def tiny(projector: str, **fields: object) -> TokendialForConditionalGeneration:
    return build_model(tiny_model_config(projector, **fields), ids=tiny_task().ids)


def patches(width: int = 16, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 36, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", ["adaptive_avg", "resize_then_avg"])
def test_the_pool_projector_is_pool_norm_swiglu_in_this_order(pooling: str) -> None:
    projector = tiny("pool", pooling=pooling).model.multi_modal_projector
    assert isinstance(projector, PoolProjector)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    x_BNC = patches()
    for k in (1, 4, 16, 25, 36):
        n = int(k**0.5)
        maps = x_BNC.unflatten(1, (6, 6)).permute(0, 3, 1, 2)
        size = -(-6 // n) * n
        if pooling == "resize_then_avg" and size != 6:
            maps = F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=True)
            pooled = F.avg_pool2d(maps, size // n)
        else:
            pooled = F.adaptive_avg_pool2d(maps, n)
        normed = F.layer_norm(
            pooled.flatten(2).transpose(1, 2), (16,), projector.norm_weight, projector.norm_bias, 1e-6
        )
        gate = F.linear(normed, projector.gate_weight, projector.gate_bias)
        up = F.linear(normed, projector.up_weight, projector.up_bias)
        expected = F.linear(F.silu(gate) * up, projector.down_weight, projector.down_bias)
        torch.testing.assert_close(projector(x_BNC, k), expected, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(projector(x_BNC, k), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("projector", ["pool", "query", "pool_after", "mlp"])
def test_one_set_of_weights_serves_every_count_and_no_shape_depends_on_it(projector: str) -> None:
    shapes = []
    for counts in (COUNTS[projector][:1], COUNTS[projector]):
        model = build_model(tiny_model_config(projector), ids=tiny_task().ids, counts=counts)
        shapes.append({name: value.shape for name, value in model.state_dict().items()})
        for k in model.config.admissible_counts:
            assert model.project(patches(), k).shape == (2, k, 16)
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("keys", ["position", "features"])
def test_query_tokens_are_a_prefix_of_any_longer_output(keys: str) -> None:
    model = tiny("query", query_keys=keys)
    whole = model.project(patches(), 16)
    for k in range(1, 17):
        torch.testing.assert_close(model.project(patches(), k), whole[:, :k], rtol=0, atol=2e-6)


def test_query_attention_is_torchs_multihead_attention_over_position_keys() -> None:
    projector = tiny("query").model.multi_modal_projector
    assert isinstance(projector, QueryProjector)
    attention = nn.MultiheadAttention(16, projector.reducer.num_heads, batch_first=True)
    linears = (projector.q_proj, projector.k_proj, projector.v_proj)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([linear.weight for linear in linears]))
        attention.in_proj_bias.copy_(torch.cat([linear.bias for linear in linears]))
        attention.out_proj.load_state_dict(projector.out_proj.state_dict())
    x_BNC = patches()
    query = projector.norm_q(projector.query[:5] + projector.positions_QE[:5]).expand(2, 5, 16)
    keys = projector.norm_k(projector.positions_NE).expand(2, 36, 16)
    mixed, _ = attention(query, keys, projector.norm_v(x_BNC), need_weights=False)
    torch.testing.assert_close(projector(x_BNC, 5), projector.proj(mixed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("keys", "same"), [("position", True), ("features", False)])
def test_query_attention_ignores_the_image_as_released_and_a_switch_flips_it(keys: str, same: bool) -> None:
    projector = tiny("query", query_keys=keys).model.multi_modal_projector
    assert isinstance(projector, QueryProjector)
    matrices = []
    for x_BNC in patches(rows=2).split(1):
        features = projector.norm_v(projector.kv_proj(x_BNC))
        matrices.append(projector.reducer.reduce(features, projector.reduction_context(features, 8), 8).matrix)
    assert torch.equal(*matrices) is same


def test_query_rows_past_k_get_exactly_no_gradient() -> None:
    model = tiny("query")
    projector = model.model.multi_modal_projector
    assert isinstance(projector, QueryProjector)
    model.project(patches(), 5).square().sum().backward()
    gradient = projector.query.grad
    assert gradient is not None
    assert torch.count_nonzero(gradient[5:]) == 0
    assert bool((gradient[:5].abs().sum(1) > 0).all())


def test_pool_after_is_llavas_projector_then_the_mean_of_windows() -> None:
    model = tiny("pool_after")
    mlp = tiny("mlp")
    mlp.load_state_dict(model.state_dict())
    tokens = mlp.project(patches(), 36).unflatten(1, (6, 6)).permute(0, 3, 1, 2)
    for n in (1, 2, 3, 6):
        expected = F.avg_pool2d(tokens, 6 // n).flatten(2).transpose(1, 2)
        torch.testing.assert_close(model.project(patches(), n * n), expected)


def test_all_counts_from_one_encoding_give_the_loss_and_gradients_of_separate_passes() -> None:
    task, batch = tiny_task(), tiny_batch()

    def gradients(shared: bool) -> tuple[float, list[torch.Tensor]]:
        model = tiny("pool_after")
        features = task.encode(model, batch)
        total = torch.zeros(())
        for k in (1, 4, 9, 36):
            encoded = features if shared else task.encode(model, batch)
            expanded = task.expand(batch, k)
            total = total + task.loss(task.logits(model, encoded, expanded, k), expanded) / 4
        total.backward()
        return total.item(), [p.grad for p in model.parameters() if p.grad is not None]

    (loss_once, once), (loss_each, each) = gradients(True), gradients(False)
    assert loss_once == pytest.approx(loss_each, rel=1e-6)
    for left, right in zip(once, each, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_the_pool_projector_is_the_kernel_operator() -> None:
    """The operator refuses mixed dtypes in its own words; torch's layers would raise something else, or nothing."""
    projector = tiny("pool").model.multi_modal_projector
    with pytest.raises(ValueError, match=r"norm_weight has dtype torch\.float32; admissible: torch\.float64"):
        projector(patches().double(), 4)

"""bipartite_merge against ToMe's own procedure, and gather_prune against sorting by hand."""

import pytest
import torch
import torch.nn.functional as F
from tokendial_kernels.bipartite_merge import bipartite_merge
from tokendial_kernels.bipartite_merge.op import match_op, merge_op
from tokendial_kernels.gather_prune import gather_prune
from tokendial_kernels.gather_prune.op import gather_op
from torch import Tensor

pytest.importorskip("hypothesis", reason="the kernels' tests run without it, but for these")

from hypothesis import given, settings
from hypothesis import strategies as st


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tome_by_hand(metric: Tensor, features: Tensor, sizes: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """ToMe for one item, pair by pair: returns merged rows and sizes in original order."""
    unit = F.normalize(metric, dim=-1)
    pairs = []
    for even in range(0, len(metric), 2):
        cosines = [(float(unit[even] @ unit[odd]), odd) for odd in range(1, len(metric), 2)]
        pairs.append((max(cosines), even))
    sums, total = features * sizes[:, None], sizes.clone()
    merged_away = set()
    for (_, odd), even in sorted(pairs, reverse=True)[:r]:
        sums[odd] += sums[even]
        total[odd] += total[even]
        merged_away.add(even)
    kept = [token for token in range(len(metric)) if token not in merged_away]
    return sums[kept] / total[kept, None], total[kept]


@settings(max_examples=25, deadline=None)
@given(num_tokens=st.integers(2, 13), seed=st.integers(0, 999), data=st.data())
def test_merge_is_tomes_for_any_r(num_tokens: int, seed: int, data: st.DataObject):
    r = data.draw(st.integers(0, num_tokens // 2))
    metric, features = draw(2, num_tokens, 4, seed=seed), draw(2, num_tokens, 3, seed=seed + 1)
    sizes = draw(2, num_tokens, seed=seed + 2).abs() + 0.5
    merge = bipartite_merge(metric, r)
    merged, merged_sizes = merge.merge(features, sizes)
    assert merged.shape == (2, num_tokens - r, 3)
    for item in range(2):
        wanted, wanted_sizes = tome_by_hand(metric[item], features[item], sizes[item], r)
        torch.testing.assert_close(merged[item], wanted)
        torch.testing.assert_close(merged_sizes[item], wanted_sizes)
    torch.testing.assert_close((merged * merged_sizes[..., None]).sum(1), (features * sizes[..., None]).sum(1))
    restored = merge.unmerge(merged)
    torch.testing.assert_close(restored.gather(1, merge.kept_BM[..., None].expand(-1, -1, 3)), merged)
    for item, source, target in zip(restored, merge.source_BR, merge.destination_BR, strict=True):
        torch.testing.assert_close(item[source], item[target])


def test_unmerging_after_no_merge_is_the_identity():
    features = draw(2, 5, 3)
    merge = bipartite_merge(features, 0)
    merged, sizes = merge.merge(features)
    assert torch.equal(merge.unmerge(merged), features)
    assert torch.equal(sizes, torch.ones(2, 5, dtype=torch.float64))


def test_merge_and_unmerge_pass_gradcheck_and_the_match_passes_opcheck():
    metric = draw(2, 7, 3)
    merge = bipartite_merge(metric, 3)
    features, sizes = draw(2, 7, 2, seed=1).requires_grad_(), (draw(2, 7, seed=2).abs() + 1).requires_grad_()
    assert torch.autograd.gradcheck(merge.merge, (features, sizes))
    assert torch.autograd.gradcheck(lambda x: merge.unmerge(merge.merge(x)[0]), features)
    torch.library.opcheck(match_op, (metric.float(), 3))
    indices = merge.source_BR, merge.destination_BR, merge.kept_BM, merge.row_BN
    assert torch.autograd.gradcheck(lambda x, s: merge_op(x, s, *indices), (features, sizes))
    assert torch.autograd.gradcheck(lambda x: merge_op(x, None, *indices)[0], features)
    torch.library.opcheck(merge_op, (features, sizes, *indices))


def test_half_precision_sizes_do_not_saturate_the_sums():
    features = torch.full((1, 512, 1), 300.0, dtype=torch.float16)
    merge = bipartite_merge(features, 256)
    merged, sizes = merge.merge(features)
    assert merged.dtype == sizes.dtype == torch.float16
    assert torch.equal(merged, torch.full_like(merged, 300.0))
    assert sizes.sum() == 512


def test_pruning_keeps_order_and_pads_small_budgets():
    features = draw(3, 4, 2)
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7]] * 3, dtype=torch.float32)
    pruned = gather_prune(features, scores, [1, 2, 4])
    assert pruned.positions_BK.tolist() == [[1, -1, -1, -1], [1, 3, -1, -1], [0, 1, 2, 3]]
    assert torch.equal(pruned.features_BKC[0, :1], features[0, 1:2])
    assert torch.equal(pruned.features_BKC[1, :2], features[1, [1, 3]])
    assert torch.equal(pruned.features_BKC[2], features[2])
    assert not pruned.features_BKC[0, 1:].any()
    assert gather_prune(features, scores, 2).positions_BK.tolist() == [[1, 3]] * 3


@settings(max_examples=25, deadline=None)
@given(num_tokens=st.integers(1, 20), seed=st.integers(0, 999), data=st.data())
def test_no_dropped_token_outscores_a_kept_one(num_tokens: int, seed: int, data: st.DataObject):
    budgets = data.draw(st.lists(st.integers(1, num_tokens), min_size=2, max_size=2))
    features, scores = draw(2, num_tokens, 1, seed=seed), draw(2, num_tokens, seed=seed + 1)
    pruned = gather_prune(features, scores, budgets)
    for item, budget in enumerate(budgets):
        kept = pruned.positions_BK[item][:budget].tolist()
        assert kept == sorted(set(kept))
        dropped = sorted(set(range(num_tokens)) - set(kept))
        assert not dropped or scores[item, dropped].max() <= scores[item, kept].min()


def test_gather_passes_gradcheck_and_opcheck():
    features = draw(2, 5, 2).requires_grad_()
    positions = torch.tensor([[0, 3, -1], [1, 2, 4]])
    assert torch.autograd.gradcheck(lambda x: gather_op(x, positions), features)
    assert torch.autograd.gradcheck(lambda x: gather_prune(x, draw(2, 5), [1, 3]).features_BKC, features)
    torch.library.opcheck(gather_op, (features, positions))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_half_precision_reductions_keep_the_dtype(dtype: torch.dtype):
    features = draw(2, 6, 4).to(dtype)
    assert bipartite_merge(features, 2).merge(features)[0].dtype == dtype
    assert gather_prune(features, features[..., 0], 3).features_BKC.dtype == dtype

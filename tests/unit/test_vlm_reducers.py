"""Reducers: exact windows, exact lengths, refusals, and what apply and unapply promise (background tests T3 to T5)."""

import pytest
import torch
import torch.nn.functional as F
from tokendial_workloads.vlm.counts import admissible_counts, check_count
from tokendial_workloads.vlm.reducers import KeepReducer, PoolReducer, QueryContext, QueryReducer

GRIDS = [(1, 1), (5, 5), (12, 12), (6, 9), (27, 27)]


def features(grid: tuple[int, int], width: int = 4) -> torch.Tensor:
    return torch.randn(2, grid[0] * grid[1], width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_adaptive_average_equals_torch_on_every_side(grid: tuple[int, int]) -> None:
    x_BND = features(grid)
    maps = x_BND.unflatten(1, grid).permute(0, 3, 1, 2)
    for k in admissible_counts("pool", grid, 0):
        n = int(k**0.5)
        reduction = PoolReducer(grid).reduce(x_BND, None, k)
        expected = F.adaptive_avg_pool2d(maps, n).flatten(2).transpose(1, 2)
        torch.testing.assert_close(reduction.apply(x_BND), expected)
        assert reduction.matrix is not None
        torch.testing.assert_close(torch.einsum("kn,bnd->bkd", reduction.matrix, x_BND), expected)


@pytest.mark.parametrize(("side", "n"), [(32, 8), (32, 16), (32, 12), (24, 12), (24, 10), (27, 9), (27, 12)])
def test_resize_then_average_differs_from_adaptive_exactly_where_the_side_does_not_divide(side: int, n: int) -> None:
    x_BND = features((side, side))
    resized, adaptive = (
        PoolReducer((side, side), method).reduce(x_BND, None, n * n).apply(x_BND)
        for method in ("resize_then_avg", "adaptive_avg")
    )
    gap = float((resized - adaptive).norm() / adaptive.norm())
    assert (gap < 1e-6) is (side % n == 0)


@pytest.mark.parametrize("method", ["adaptive_avg", "resize_then_avg"])
@pytest.mark.parametrize("grid", [(12, 12), (6, 9)], ids=str)
def test_pooling_keeps_a_constant_field_is_linear_and_has_exactly_k_tokens(grid: tuple[int, int], method: str) -> None:
    x_BND, y_BND = features(grid), features(grid).flip(1)
    reducer = PoolReducer(grid, method)
    for k in admissible_counts("pool", grid, 0):
        apply = reducer.reduce(x_BND, None, k).apply
        assert apply(x_BND).shape == (2, k, 4)
        torch.testing.assert_close(apply(torch.full_like(x_BND, 3.0)), torch.full((2, k, 4), 3.0))
        torch.testing.assert_close(apply(2 * x_BND - y_BND), 2 * apply(x_BND) - apply(y_BND))


@pytest.mark.parametrize(
    ("projector", "k"),
    [
        ("pool", 0),
        ("pool", 2),
        ("pool", 200),
        ("pool", 169),
        ("pool", -4),
        ("pool_after", 25),
        ("pool_after", 64),
        ("query", 0),
        ("query", 17),
        ("mlp", 143),
        ("mlp", 1),
    ],
)
def test_an_inadmissible_count_is_refused_with_the_list_and_never_floored(projector: str, k: int) -> None:
    with pytest.raises(ValueError, match=rf"^{k} visual tokens .*admissible: (1|144)"):
        check_count(projector, (12, 12), 16, k)


def test_nested_pooling_is_the_mean_of_its_children_down_the_whole_ladder() -> None:
    x_BND = features((24, 24))
    direct = {n: PoolReducer((24, 24), nested=True).reduce(x_BND, None, n * n).apply(x_BND) for n in (12, 6, 3, 1)}
    steps, side, tokens = {}, 24, x_BND
    for n in (12, 6, 3, 1):
        tokens = PoolReducer((side, side), nested=True).reduce(tokens, None, n * n).apply(tokens)
        side, steps[n] = n, tokens
    for n, expected in direct.items():
        torch.testing.assert_close(steps[n], expected, rtol=0, atol=1e-6)


def test_twelve_does_not_nest_in_sixteen() -> None:
    assert 144 not in admissible_counts("pool_after", (16, 16), 0)
    assert tuple(admissible_counts("pool_after", (24, 24), 0)) == (1, 4, 9, 16, 36, 64, 144, 576)


def test_unapply_gives_each_patch_its_own_window_and_apply_undoes_it() -> None:
    x_BND = features((6, 6))
    reduction = PoolReducer((6, 6)).reduce(x_BND, None, 9)
    tokens = reduction.apply(x_BND)
    spread = reduction.unapply(tokens)
    torch.testing.assert_close(spread.unflatten(1, (6, 6))[:, 0:2, 2:4], tokens[:, 1, None, None].expand(2, 2, 2, 4))
    torch.testing.assert_close(reduction.apply(spread), tokens)


def test_positions_are_window_centres_and_sizes_are_window_areas() -> None:
    reduction = PoolReducer((6, 6)).reduce(features((6, 6)), None, 4)
    torch.testing.assert_close(reduction.positions_k2, torch.tensor([[1.0, 1], [1, 4], [4, 1], [4, 4]]))
    assert reduction.sizes_k.tolist() == [9, 9, 9, 9]


def test_keeping_every_patch_is_the_identity() -> None:
    x_BND = features((3, 3))
    reduction = KeepReducer((3, 3)).reduce(x_BND, None, 9)
    assert reduction.apply(x_BND) is x_BND
    assert torch.equal(reduction.unapply(x_BND), x_BND)
    assert reduction.kept_k is not None
    assert reduction.kept_k.tolist() == list(range(9))


def test_query_weights_are_a_prefix_and_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(8, 8, generator=generator), torch.randn(1, 9, 8, generator=generator)
    x_BND = features((3, 3), 8)
    reducer = QueryReducer((3, 3), 8, num_heads=2, width=8)
    whole = reducer.reduce(x_BND, QueryContext(query, key), 8)
    part = reducer.reduce(x_BND, QueryContext(query[:3], key), 3)
    assert whole.matrix is not None
    assert part.matrix is not None
    torch.testing.assert_close(part.matrix, whole.matrix[:, :, :3])
    torch.testing.assert_close(whole.matrix.sum(-1), torch.ones(1, 2, 8))
    assert whole.apply(x_BND).shape == whole.unapply(torch.randn(2, 8, 8))[:, :8].shape
    assert reducer.flops(3) == 4 * 3 * 9 * 8

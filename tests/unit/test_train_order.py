"""The order of examples: a permutation each epoch, the same global sequence whatever the number of workers."""

from collections import Counter
from itertools import pairwise

import pytest
from tokendial.train.order import example_at, rank_batches


@pytest.mark.parametrize("length", [1, 2, 7, 64, 1000])
def test_every_epoch_visits_every_example_once(length: int) -> None:
    for epoch in range(3):
        seen = Counter(example_at(5, epoch * length + place, length) for place in range(length))
        assert seen == Counter(range(length))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [[example_at(seed, e * 100 + p, 100) for p in range(100)] for seed in range(2) for e in range(2)]
    assert len({tuple(order) for order in orders}) == 4


def test_neighbours_in_the_order_are_not_neighbours_in_the_data() -> None:
    order = [example_at(0, place, 1000) for place in range(1000)]
    adjacent = sum(abs(a - b) == 1 for a, b in pairwise(order))
    assert adjacent < 12  # two are expected; P(≥ 12) < 1e-5


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_world_size_and_accumulation_do_not_change_a_global_batch(world: int, accumulation: int) -> None:
    rows = 16 // (world * accumulation)
    for batch in (0, 3):
        ranks = [
            list(rank_batches(9, 50, batch, batch + 1, accumulation, rows, world, rank)) for rank in range(world)
        ]
        joined = [index for micro in range(accumulation) for rank in range(world) for index in ranks[rank][micro]]
        assert joined == [example_at(9, batch * 16 + place, 50) for place in range(16)]

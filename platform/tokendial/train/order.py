"""Which example stands at which place of the run: a keyed permutation per epoch, the same for every world size."""

from collections.abc import Iterator

from tokendial.schedule.draw import mix64, stream_key


def example_at(seed: int, place: int, length: int) -> int:
    """Index of the example at global `place`; each epoch visits every index once, in its own order.

    A four-round Feistel network over the smallest even number of bits that covers `length`, walking the cycle until
    it falls inside (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    epoch, index = divmod(place, length)
    half = max(1, (max(1, length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round_number in range(4):
            left, right = right, left ^ (mix64(seed, stream_key("order"), epoch, round_number, right) & mask)
        index = left << half | right
        if index < length:
            return index


def rank_batches(
    seed: int, length: int, first: int, last: int, accumulation: int, rows: int, world: int, rank: int
) -> Iterator[list[int]]:
    """Example indices of each micro-batch that `rank` runs in global batches [first, last)."""
    per_batch = accumulation * world * rows
    for batch in range(first, last):
        for micro in range(accumulation):
            start = batch * per_batch + (micro * world + rank) * rows
            yield [example_at(seed, place, length) for place in range(start, start + rows)]

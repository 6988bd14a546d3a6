"""Which token counts a projector can serve; an inadmissible count is refused, never floored. Imports no torch."""

from collections.abc import Sequence
from math import isqrt

PROJECTORS = ("pool", "query", "pool_after", "mlp")


def admissible_counts(projector: str, grid: tuple[int, int], max_queries: int) -> Sequence[int]:
    """The counts `projector` serves on a (height, width) patch grid, rising.

    pool: squares n*n with n up to the shorter side (TokenFLEX, arXiv 2504.03154); pool_after: squares whose n divides
    both sides (M3, arXiv 2405.17430); query: every prefix length 1..max_queries (MQT, arXiv 2405.19315); mlp: one
    token per patch (LLaVA). Raises ValueError for an unknown projector.
    """
    sides = range(1, min(grid) + 1)
    match projector:
        case "pool":
            return tuple(n * n for n in sides)
        case "pool_after":
            return tuple(n * n for n in sides if grid[0] % n == 0 and grid[1] % n == 0)
        case "query":
            return range(1, max_queries + 1)
        case "mlp":
            return (grid[0] * grid[1],)
    raise ValueError(f"projector {projector!r} is unknown; choose one of {', '.join(PROJECTORS)}")


def check_count(projector: str, grid: tuple[int, int], max_queries: int, k: int) -> int:
    """Return k, or raise ValueError listing the counts that are admissible."""
    counts = admissible_counts(projector, grid, max_queries)
    if k in counts:
        return k
    listed = f"1 to {max_queries}" if isinstance(counts, range) else ", ".join(map(str, counts))
    raise ValueError(
        f"{k} visual tokens are not admissible for projector {projector!r} on a {grid[0]}x{grid[1]} patch grid; "
        f"admissible: {listed}"
    )


def side_of(k: int) -> int:
    """The side n of a square count n*n."""
    n = isqrt(k)
    assert n * n == k, f"{k} is not a square"
    return n

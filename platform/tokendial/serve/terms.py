"""What a request asks for, held against the ladder: the count of each image at full quality, or a refusal."""

from collections.abc import Callable, Sequence
from math import inf

from tokendial.serve.governor import Terms
from tokendial.serve.ladder import Ladder
from tokendial.serve.request import Ask, BadRequest, Reason, ServeRequest


def terms_of(request: ServeRequest, ladder: Ladder, alone_s: Callable[[Sequence[int]], float]) -> Terms:
    """The terms of a request; BadRequest where a count is not admissible or no count is good enough.

    Where a target is named and an image leaves its count open, it gets the largest count that meets the target on an
    idle replica, at best the smallest that is good enough. `alone_s` forecasts an idle answer at given counts.
    """
    if len(request.asks) != len(request.images):
        raise BadRequest("visual_tokens", f"{len(request.asks)} counts are asked for {len(request.images)} images")
    floor = request.min_quality or 0.0
    asked = tuple(_asked(ask, ladder) for ask in request.asks)
    open_counts = [_open(ask, count, floor, ladder) for ask, count in zip(request.asks, asked, strict=True)]
    wanted = tuple(counts[0] for counts in open_counts)
    if request.latency_ms is not None:
        wanted = _in_time(open_counts, 1e-3 * request.latency_ms, alone_s)
    exact = tuple(ask.count is not None for ask in request.asks)
    return Terms(
        wanted=wanted,
        exact=exact,
        may_bend=request.may_bend,
        min_quality=floor,
        target_s=inf if request.latency_ms is None else 1e-3 * request.latency_ms,
        reason=_reason(request.asks, asked, wanted, ladder),
    )


def _asked(ask: Ask, ladder: Ladder) -> int:
    """The count an ask comes to when nothing else is wanted."""
    if ask.count is None:
        return ladder.largest
    if ask.count not in ladder.admissible:
        raise BadRequest("visual_tokens", f"{ask.count} visual tokens are not admissible; {_listed(ladder)}")
    return ask.count


def _open(ask: Ask, asked: int, floor: float, ladder: Ladder) -> list[int]:
    """Counts an image may get for its own target, falling; the first is its full count. BadRequest where none is.

    Below what was asked only efficient counts are tried: of others a smaller one is as good.
    """
    quality = ladder.quality(asked)
    if ask.count is not None:
        if (quality or 0.0) < floor:
            known = "unknown quality" if quality is None else f"{quality:.3f}"
            raise BadRequest("slo.min_quality", f"min_quality {floor} is above the {known} of {asked} visual tokens")
        return [asked]
    tried = [asked, *(count for count in ladder.efficient() if count < asked)]
    allowed = [count for count in tried if (ladder.quality(count) or 0.0) >= floor]
    if not allowed:
        best = max(rung.quality for rung in ladder.rungs.values())
        raise BadRequest(
            "slo.min_quality",
            f"min_quality {floor} is not reached up to {asked} visual tokens; the model's best is {best:.3f}",
        )
    return allowed


def _in_time(
    open_counts: Sequence[Sequence[int]], target_s: float, alone_s: Callable[[Sequence[int]], float]
) -> tuple[int, ...]:
    """Step all images down together until the forecast is within the target."""
    for step in range(max((len(counts) for counts in open_counts), default=1)):
        wanted = tuple(counts[min(step, len(counts) - 1)] for counts in open_counts)
        if alone_s(wanted) <= target_s:
            return wanted
    return tuple(counts[-1] for counts in open_counts)


def _reason(asks: Sequence[Ask], asked: Sequence[int], wanted: Sequence[int], ladder: Ladder) -> Reason:
    if tuple(asked) != tuple(wanted):
        return "target"
    if any(ask.count is not None for ask in asks):
        return "asked"
    return "smallest" if wanted and max(wanted) == min(ladder.rungs) else "largest"


def _listed(ladder: Ladder) -> str:
    counts = ladder.admissible
    if len(counts) > 16 and counts[-1] - counts[0] == len(counts) - 1:
        return f"admissible: {counts[0]} to {counts[-1]}"
    return f"admissible: {', '.join(map(str, counts))}"

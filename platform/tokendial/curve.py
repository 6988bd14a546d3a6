"""The token curve and what is computed from it: AUTC, bootstrap intervals, regret, the trained-at × served-at matrix.

Intervals are percentile bootstraps that resample source items, so that several questions about one image count once
(Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapters 8 and 13); comparisons resample (seed, source
item) pairs with both models' answers kept together.

Shapes: I examples, S source items, C counts, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 1000
_CHUNK = 1 << 20

Interval = tuple[float, float]
TwinKind = Literal["steps", "flops"]


@dataclass(frozen=True)
class CurvePoint:
    """Quality in [0, 1] at one count, its 95 % interval, and the number of examples behind it."""

    quality: float
    ci: Interval
    n: int


@dataclass(frozen=True)
class TokenCurve:
    """Quality at each count of an evaluation grid, and the area under it."""

    points: dict[int, CurvePoint]
    autc: float
    autc_ci: Interval


@dataclass(frozen=True)
class Difference:
    """A paired difference of quality: `p` is the two-sided bootstrap probability of no difference."""

    mean: float
    ci: Interval
    p: float
    n: int
    per_seed: dict[int, float]


@dataclass(frozen=True)
class Rise:
    """A paired difference of one model's quality from the count `before` to a larger one."""

    before: int
    mean: float
    ci: Interval

    @property
    def falls(self) -> bool:
        """Whether more tokens are surely worse."""
        return self.ci[1] < 0


@dataclass(frozen=True)
class Matrix:
    """Quality of each trained model (row) at each served count (column), averaged over seeds.

    `rows` are "flexible" and the twins' counts as text; `kind` says what the twins had in common with the flexible run.
    """

    rows: tuple[str, ...]
    counts: tuple[int, ...]
    quality: tuple[tuple[float, ...], ...]
    ci: tuple[tuple[Interval, ...], ...]
    seeds: tuple[int, ...]
    kind: TwinKind


@dataclass(frozen=True)
class ItemScores:
    """Quality of every answer of one model at every count; position i is the same example throughout.

    `data` is the digest of what the examples are made from, empty where it is not known.
    """

    sources: Sequence[str]
    quality: Mapping[int, Sequence[float]]
    groups: Sequence[str] = field(default=())
    data: str = ""

    def __post_init__(self) -> None:
        num = len(self.sources)
        if not num or not self.quality:
            raise ValueError(f"scores need at least one example and one count, got {num} and {len(self.quality)}")
        for count, values in self.quality.items():
            if len(values) != num:
                raise ValueError(f"scores at count {count} have {len(values)} values for {num} examples")
            outside = [value for value in values if not 0 <= value <= 1]
            if outside:
                raise ValueError(f"quality at count {count} leaves [0, 1]: {outside[0]}")
        if self.groups and len(self.groups) != num:
            raise ValueError(f"scores have {len(self.groups)} groups for {num} examples")

    @cached_property
    def counts(self) -> tuple[int, ...]:
        return tuple(sorted(self.quality))

    def columns(self) -> NDArray:
        """Qualities [I, C], counts increasing."""
        import numpy as np

        return np.stack([np.asarray(self.quality[count], dtype=np.float64) for count in self.counts], axis=1)


def autc_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Weight of each count's quality in AUTC: the trapezoid rule over log2 k divided by the grid's width."""
    if not counts or any(after <= before for before, after in pairwise(counts)) or counts[0] < 1:
        raise ValueError(f"a grid needs strictly increasing positive counts, got {list(counts)}")
    if len(counts) == 1:
        return (1.0,)
    x = [math.log2(count) for count in counts]
    width = x[-1] - x[0]
    left = [x[0], *x[:-1]]
    right = [*x[1:], x[-1]]
    return tuple((after - before) / (2 * width) for before, after in zip(left, right, strict=True))


def autc(curve: Mapping[int, CurvePoint | float]) -> float:
    """Area under the token curve over log2 k, normalised to [0, 1]; of a single count, its quality."""
    counts = sorted(curve)
    values = [point.quality if isinstance(point, CurvePoint) else point for point in map(curve.__getitem__, counts)]
    return math.fsum(weight * value for weight, value in zip(autc_weights(counts), values, strict=True))


def token_curve(scores: ItemScores, seed: int = 0, resamples: int = RESAMPLES) -> TokenCurve:
    """The curve of one model with 95 % intervals over source items."""
    import numpy as np

    columns_IC = scores.columns()
    draws_RC = _resampled_means(columns_IC, _cluster(scores.sources), seed, resamples)
    means = columns_IC.mean(axis=0)
    weights = np.asarray(autc_weights(scores.counts))
    points = {
        count: CurvePoint(float(means[i]), _interval(draws_RC[:, i]), len(scores.sources))
        for i, count in enumerate(scores.counts)
    }
    return TokenCurve(points, float(means @ weights), _interval(draws_RC @ weights))


def group_quality(scores: ItemScores) -> dict[str, dict[int, float]]:
    """Mean quality per group (question type) and count, groups in alphabetical order."""
    import numpy as np

    columns_IC = scores.columns()
    labels = np.asarray(scores.groups or [""] * len(scores.sources))
    return {
        str(group): dict(zip(scores.counts, columns_IC[labels == group].mean(axis=0).tolist(), strict=True))
        for group in np.unique(labels)
    }


def unlike(ours: ItemScores, theirs: ItemScores) -> str | None:
    """Why the answers of two models cannot be held against each other pair by pair; None where they can.

    Data whose digest is not known, as of scores written before they had one, is known by its sources alone.
    """
    if ours.data and theirs.data and ours.data != theirs.data:
        return "were scored on different data"
    if list(ours.sources) != list(theirs.sources):
        return "did not answer the same examples"
    if ours.counts != theirs.counts:
        return f"have different evaluation grids: {[list(ours.counts), list(theirs.counts)]}"
    return None


def paired_difference(
    ours: Mapping[int, ItemScores],
    theirs: Mapping[int, ItemScores],
    count: int | None = None,
) -> Difference:
    """Our quality minus theirs at `count` (None: in AUTC) over the seeds (keys) and examples that both answered.

    Raises ValueError where the two do not answer the same examples over the same grid.
    """
    import numpy as np

    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise ValueError(f"no seed is in both: {sorted(ours)} and {sorted(theirs)}")
    gaps, units, per_seed = [], [], {}
    for key in seeds:
        if reason := unlike(ours[key], theirs[key]):
            raise ValueError(f"seed {key}: the two models {reason}")
        gap_I = _summary(ours[key], count) - _summary(theirs[key], count)
        per_seed[key] = float(gap_I.mean())
        gaps.append(gap_I)
        units += [f"{key}/{source}" for source in ours[key].sources]
    gap_I1 = np.concatenate(gaps)[:, None]
    draws_R = _resampled_means(gap_I1, _cluster(units), 0, RESAMPLES)[:, 0]
    # The observed sample counts as one of the resamples, so p is never 0 (Davison & Hinkley 1997, section 4.2.1).
    tail = (1 + min(int((draws_R <= 0).sum()), int((draws_R >= 0).sum()))) / (1 + RESAMPLES)
    return Difference(float(gap_I1.mean()), _interval(draws_R), min(1.0, 2 * tail), len(units), per_seed)


def rises(scores: ItemScores, counts: Sequence[int]) -> dict[int, Rise]:
    """Quality at each of the rising counts minus that at the one before, over the same examples."""
    import numpy as np

    cluster_I, found = _cluster(scores.sources), {}
    for before, after in pairwise(counts):
        gap_I1 = (_summary(scores, after) - _summary(scores, before))[:, None]
        draws_R = _resampled_means(gap_I1, cluster_I, 0, RESAMPLES)[:, 0]
        found[after] = Rise(before, float(np.mean(gap_I1)), _interval(draws_R))
    return found


def regret(flexible: Mapping[int, ItemScores], twins: Mapping[int, Mapping[int, ItemScores]]) -> dict[int, Difference]:
    """Quality of the twin at its own count minus the flexible model's there, by twin count; seeds are inner keys."""
    return {count: paired_difference(twins[count], flexible, count) for count in sorted(twins)}


def served_matrix(
    flexible: Mapping[int, ItemScores], twins: Mapping[int, Mapping[int, ItemScores]], kind: TwinKind = "steps"
) -> Matrix:
    """The trained-at × served-at matrix over seeds; raises ValueError where data, grids or seeds differ."""
    models = {**{str(count): twins[count] for count in sorted(twins)}, "flexible": flexible}
    grids = {scores.counts for model in models.values() for scores in model.values()}
    seed_sets = {tuple(sorted(model)) for model in models.values()}
    if len({scores.data for model in models.values() for scores in model.values() if scores.data}) > 1:
        raise ValueError("runs that were scored on different data are not compared")
    if len(grids) != 1:
        raise ValueError(f"runs with different grids are not compared: {sorted(grids)}")
    if len(seed_sets) != 1:
        raise ValueError(f"every row of the matrix needs the same seeds, got {sorted(seed_sets)}")
    curves = [pooled_curve(model) for model in models.values()]
    return Matrix(
        rows=tuple(models),
        counts=grids.pop(),
        quality=tuple(tuple(point.quality for point in curve.points.values()) for curve in curves),
        ci=tuple(tuple(point.ci for point in curve.points.values()) for curve in curves),
        seeds=seed_sets.pop(),
        kind=kind,
    )


def pooled_curve(model: Mapping[int, ItemScores]) -> TokenCurve:
    """One curve of a model over all its seeds (keys), its resampled unit the (seed, source item) pair."""
    counts = next(iter(model.values())).counts
    sources = [f"{seed}/{source}" for seed, scores in model.items() for source in scores.sources]
    quality = {count: [value for scores in model.values() for value in scores.quality[count]] for count in counts}
    return token_curve(ItemScores(sources, quality))


def _summary(scores: ItemScores, count: int | None) -> NDArray:
    """One number per example: its quality at `count`, or its own AUTC (the mean of which is the model's)."""
    import numpy as np

    if count is None:
        return scores.columns() @ np.asarray(autc_weights(scores.counts))
    if count not in scores.quality:
        raise ValueError(f"count {count} was not evaluated; the grid is {list(scores.counts)}")
    return np.asarray(scores.quality[count], dtype=np.float64)


def _cluster(sources: Sequence[str]) -> NDArray:
    """Index of each example's source item."""
    import numpy as np

    return np.unique(np.asarray(sources), return_inverse=True)[1]


def _resampled_means(columns_IC: NDArray, cluster_I: NDArray, seed: int, resamples: int) -> NDArray:
    """Means [R, C] over examples, each resample drawing S source items with replacement."""
    import numpy as np

    num_sources = int(cluster_I.max()) + 1
    sizes_S = np.bincount(cluster_I, minlength=num_sources)
    sums_SC = np.stack([np.bincount(cluster_I, column, num_sources) for column in columns_IC.T], axis=1)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // num_sources)
    means = []
    for start in range(0, resamples, rows):
        num = min(rows, resamples - start)
        drawn = rng.integers(0, num_sources, (num, num_sources)) + np.arange(num)[:, None] * num_sources
        times_RS = np.bincount(drawn.ravel(), minlength=num * num_sources).reshape(num, num_sources).astype(np.float64)
        means.append((times_RS @ sums_SC) / (times_RS @ sizes_S)[:, None])
    return np.concatenate(means)


def _interval(draws_R: NDArray) -> Interval:
    import numpy as np

    low, high = np.quantile(draws_R, (0.025, 0.975))
    return float(low), float(high)

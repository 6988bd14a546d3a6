"""Results as lines to draw: runs that differ only in their seed are one series with pooled intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tokendial.curve import CurvePoint, Matrix, autc
from tokendial.results import RunResult


@dataclass(frozen=True)
class Series:
    """One line of a figure. `seeds` holds each seed's own qualities by count; `twin` is a model of one fixed count."""

    label: str
    points: dict[int, CurvePoint]
    trained: tuple[int, ...]
    twin: bool
    seeds: tuple[dict[int, float], ...]
    results: tuple[RunResult, ...]

    @property
    def counts(self) -> list[int]:
        return sorted(self.points)

    @property
    def autc(self) -> float:
        return autc(self.points)


def series_of(results: Sequence[RunResult]) -> list[Series]:
    """Group results by all but the seed, flexible models first; raises ValueError where grids or metrics differ.

    Runs on different data, or of weights that started elsewhere, are lines of their own; `apart` says so.
    """
    results = [result for result in results if result.curve]
    if not results:
        raise ValueError("there is no finished run with a curve among the results")
    grids = sorted({tuple(sorted(result.curve)) for result in results})
    metrics = sorted({f"{result.workload} {result.metric} on {result.split}" for result in results})
    if len(results) == 1 and results[0].matrix:
        return _of_matrix(results[0], results[0].matrix)
    if len(grids) > 1:
        raise ValueError(f"runs with different evaluation grids are not compared: {[list(grid) for grid in grids]}")
    if len(metrics) > 1:
        raise ValueError(f"runs with different metrics are not compared: {metrics}")
    groups: dict[tuple[object, ...], list[RunResult]] = {}
    for result in results:
        groups.setdefault(_identity(result, results), []).append(result)
    series = [_pooled(label, group) for label, group in zip(_labels(groups), groups.values(), strict=True)]
    return sorted(series, key=lambda line: (line.twin, line.trained[-1:] if line.twin else ()))


def _of_matrix(result: RunResult, matrix: Matrix) -> list[Series]:
    """The flexible model and its twins, each a mean over the matrix's seeds."""
    lines = []
    for row, qualities, intervals in zip(matrix.rows, matrix.quality, matrix.ci, strict=True):
        num = result.curve[matrix.counts[0]].n * len(matrix.seeds)
        cells = zip(matrix.counts, qualities, intervals, strict=True)
        points = {count: CurvePoint(quality, ci, num) for count, quality, ci in cells}
        twin = row.isdigit()
        trained = (int(row),) if twin else result.trained_counts
        label = f"fixed {row}" if twin else result.schedule or result.name
        lines.append(Series(label, points, trained, twin, (), () if twin else (result,)))
    return sorted(lines, key=lambda line: line.twin)


def _identity(result: RunResult, among: Sequence[RunResult]) -> tuple[object, ...]:
    """Equal for runs that differ only in their seed; a run whose seed occurs twice otherwise stands alone."""
    key = (*_configured(result), result.data, result.lineage)
    alike = [other for other in among if (*_configured(other), other.data, other.lineage) == key]
    seeds = [other.seed for other in alike]
    alone = None in seeds or len(set(seeds)) < len(seeds)
    return (*key, result.name if alone else "")


def _configured(result: RunResult) -> tuple[object, ...]:
    # Seeds of a short run may have drawn different counts.
    return result.experiment, result.schedule, result.variant or result.trained_counts


def apart(series: Sequence[Series]) -> list[str]:
    """Why lines of one configuration are not one line, a sentence for each after the first."""
    firsts: dict[tuple[object, ...], Series] = {}
    said = []
    for line in series:
        first = firsts.setdefault(_configured(line.results[0]), line) if line.results else line
        if first is not line and (reasons := _differences(first.results[0], line.results[0])):
            said.append(f"{first.label} and {line.label} are not one line, as {' and '.join(reasons)}")
    return said


def _differences(one: RunResult, other: RunResult) -> list[str]:
    reasons = []
    if one.data != other.data:
        known = "they were scored on different data"
        reasons.append(known if one.data and other.data else "of one it is not known what data it was scored on")
    if one.lineage != other.lineage:
        begun = [f"from {run.parent!r}" if run.parent else "from fresh weights" for run in (one, other)]
        reasons.append(f"they started {' and '.join(begun)}")
    return reasons


def _labels(groups: dict[tuple[object, ...], list[RunResult]]) -> list[str]:
    """Short names: twins by their count, others by schedule, with the experiment where two would read the same."""
    short = [_label(group[0]) for group in groups.values()]
    named = [f"{label} · {group[0].experiment}" for label, group in zip(short, groups.values(), strict=True)]
    chosen = [name if short.count(label) > 1 else label for label, name in zip(short, named, strict=True)]
    return [
        label if chosen.count(label) == 1 else f"{label} · {group[0].name}"
        for label, group in zip(chosen, groups.values(), strict=True)
    ]


def _label(result: RunResult) -> str:
    if _is_twin(result):
        return f"fixed {result.trained_counts[0]}"
    return result.schedule or result.name


def _is_twin(result: RunResult) -> bool:
    return result.schedule == "fixed" and len(result.trained_counts) == 1 and len(result.curve) > 1


def _pooled(label: str, group: list[RunResult]) -> Series:
    """Means over seeds; half-widths of independent seeds add in quadrature, as resampling (seed, item) pairs does."""
    points = {count: _pool([result.curve[count] for result in group]) for count in sorted(group[0].curve)}
    seeds = tuple({count: point.quality for count, point in result.curve.items()} for result in group)
    trained = tuple(sorted({count for result in group for count in result.trained_counts}))
    return Series(label, points, trained, _is_twin(group[0]), seeds, tuple(group))


def _pool(points: list[CurvePoint]) -> CurvePoint:
    mean = fmean(point.quality for point in points)
    below = math.hypot(*(point.quality - point.ci[0] for point in points)) / len(points)
    above = math.hypot(*(point.ci[1] - point.quality for point in points)) / len(points)
    return CurvePoint(mean, (mean - below, mean + above), sum(point.n for point in points))


def metric_label(series: Sequence[Series]) -> str:
    """Axis label: the metric and the split it was measured on."""
    first = series[0].results[0]
    return f"{first.metric} ({first.split})" if first.split else first.metric

"""Several runs side by side in one offline HTML file: curves over seeds, paired tests, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tokendial.curve import Difference, ItemScores, paired_difference, unlike
from tokendial.report.curves import embed, plotly_curve
from tokendial.report.matrices import note, plotly_matrix
from tokendial.report.page import cell, page, section, table
from tokendial.report.palette import FONTS, GRID, INK, colours
from tokendial.report.series import Series, apart, metric_label, series_of
from tokendial.results import RunResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

Scores = Mapping[str, ItemScores]


def compare_report(results: Sequence[RunResult], scores: Scores | None = None) -> str:
    """One HTML document comparing finished runs; those that differ only in their seed are one line.

    `scores` are every run's answers by run name: where both sides of a comparison have them for the same seeds, the
    difference is tested pair by pair over (seed, source item). Raises ValueError where grids or metrics differ.
    """
    from plotly.offline import get_plotlyjs

    series = series_of(results)
    label = metric_label(series)
    parts = [
        section("Curves", "; ".join([_curve_note(series), *apart(series)]), embed(plotly_curve(series))),
        section("Summary", "means over seeds; AUTC is the area under the curve over log2 tokens", _summary(series)),
        _paired_section(series, scores or {}),
        section("Quality and cost", "training FLOPs of one run, padding included", embed(_cost_figure(series))),
        section("Runs", "one row per run", _runs(series)),
    ]
    parts += [
        section(f"Trained at × served at: {result.name}", note(result.matrix), embed(plotly_matrix(result.matrix, "")))
        for result in results
        if result.matrix
    ]
    first = series[0].results[0]
    about = f"{first.workload}: {label}, {sum(len(line.results) for line in series)} runs"
    return page("Token curves", about, parts, get_plotlyjs())


def paired_tests(series: Sequence[Series], scores: Scores) -> dict[str, dict[int | None, Difference]]:
    """The first series against each other one, at every count and in AUTC (None), where both have scores."""
    reference = _scores_by_seed(series[0], scores)
    tests: dict[str, dict[int | None, Difference]] = {}
    for other in series[1:]:
        theirs = _scores_by_seed(other, scores)
        shared = {seed for seed in reference.keys() & theirs.keys() if unlike(reference[seed], theirs[seed]) is None}
        if shared:
            ours, them = ({seed: side[seed] for seed in shared} for side in (reference, theirs))
            cases: list[int | None] = [*series[0].counts, None]
            tests[other.label] = {count: paired_difference(ours, them, count) for count in cases}
    return tests


def _scores_by_seed(line: Series, scores: Scores) -> dict[int, ItemScores]:
    return {result.seed or 0: scores[result.name] for result in line.results if result.name in scores}


def _untested(series: Sequence[Series], scores: Scores) -> list[str]:
    """The lines that have no paired test against the first, each with the reason."""
    reference, said = _scores_by_seed(series[0], scores), []
    for other in series[1:]:
        theirs = _scores_by_seed(other, scores)
        reasons = [unlike(reference[seed], theirs[seed]) for seed in sorted(reference.keys() & theirs.keys())]
        if None not in reasons:
            missing = "they have no seed in common" if reference and theirs else "the runs' answers are not at hand"
            said.append(f"no paired test against {other.label}: {f'they {reasons[0]}' if reasons else missing}")
    return said


def _curve_note(series: Sequence[Series]) -> str:
    seeds = max(len(line.seeds) for line in series)
    pooled = f" of the mean over {seeds} seeds" if seeds > 1 else ""
    return f"filled markers: counts trained at; hollow: never trained at; bars: 95 % intervals{pooled}"


def _summary(series: Sequence[Series]) -> str:
    counts = series[0].counts
    rows = []
    for line in series:
        best = [max(series, key=lambda other, k=count: other.points[k].quality) is line for count in counts]
        cells = [_quality(line, count, "strong" if top else "") for count, top in zip(counts, best, strict=True)]
        seeds = ", ".join(str(result.seed) for result in line.results if result.seed is not None)
        rows.append([cell(line.label), cell(seeds, "text"), cell(f"{line.autc:.4f}", "strong"), *cells])
    return table(["runs", "seeds", "AUTC", *(f"{count} tokens" for count in counts)], rows)


def _quality(line: Series, count: int, kind: str) -> str:
    point = line.points[count]
    return cell(f"{point.quality:.3f} ± {(point.ci[1] - point.ci[0]) / 2:.3f}", kind)


def _paired_section(series: Sequence[Series], scores: Scores) -> str:
    tests = paired_tests(series, scores)
    title = f"{series[0].label} minus the others"
    untested = _untested(series, scores)
    if not tests:
        return section(title, "; ".join(untested) or "no paired test: there is one line only", "")
    counts = series[0].counts
    rows = [[cell(label), *(_difference(line[count]) for count in (*counts, None))] for label, line in tests.items()]
    about = "paired bootstrap over (seed, source item), 95 % intervals; bold: the interval excludes zero"
    body = table(["against", *(f"{count} tokens" for count in counts), "AUTC"], rows)
    return section(title, "; ".join([about, *untested]), body)


def _difference(gap: Difference) -> str:
    clear = gap.ci[0] > 0 or gap.ci[1] < 0
    return cell(f"{gap.mean:+.3f} ({gap.ci[0]:+.3f} to {gap.ci[1]:+.3f}), p {gap.p:.3f}", "strong" if clear else "")


def _runs(series: Sequence[Series]) -> str:
    rows = [_run(line, result) for line in series for result in line.results]
    return table(
        ["run", "group", "AUTC", "steps", "FLOPs", "visual tokens", "seconds", "CPU-hours", "GPU-hours", "price"], rows
    )


def _run(line: Series, result: RunResult) -> list[str]:
    spent = result.spent
    hours = [f"{spent.cpu_hours:.3f}", f"{spent.gpu_hours:.3f}"] if spent else ["", ""]
    price = f"{spent.money:.2f}" if spent and spent.money is not None else ""
    tokens = f"{spent.total.visual_tokens:,}" if spent else ""
    numbers = [f"{result.autc:.4f}", f"{result.steps:,}", f"{result.flops:.3g}", tokens, f"{result.seconds:,.0f}"]
    return [cell(result.name), cell(line.label, "text"), *map(cell, [*numbers, *hours, price])]


def _cost_figure(series: Sequence[Series]) -> go.Figure:
    """AUTC over training FLOPs, a point per run."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for line, shade in zip(series, colours([not line.twin for line in series]), strict=True):
        figure.add_trace(
            go.Scatter(
                x=[result.flops for result in line.results],
                y=[result.autc for result in line.results],
                text=[result.name for result in line.results],
                name=line.label,
                mode="markers",
                marker={"color": shade, "size": 12, "symbol": "square" if line.twin else "circle"},
                hovertemplate="%{text}: AUTC %{y:.4f}, %{x:.3g} FLOPs",
            )
        )
    figure.update_layout(font={"family": FONTS, "size": 14, "color": INK}, plot_bgcolor="white", height=380)
    figure.update_xaxes(title="training FLOPs", gridcolor=GRID, rangemode="tozero")
    figure.update_yaxes(title="AUTC", gridcolor=GRID)
    return figure

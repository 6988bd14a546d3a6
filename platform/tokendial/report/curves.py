"""The token curve as a figure: quality over log2 k with intervals, trained and untrained counts told apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendial.report.palette import FONTS, GRID, INK, MUTED, colours, styled
from tokendial.report.series import Series, metric_label, series_of
from tokendial.results import RunResult

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes

LABEL_GAP = 0.045
SEED_SHIFT = 1.06
TITLE = "Token curve"
CONFIG = {"displaylogo": False, "responsive": True}


def curve_png(results: Sequence[RunResult], path: Path) -> Path:
    """Write the curves of one or several runs as PNG; runs that differ only in their seed are one line.

    Filled markers are trained counts, hollow ones never trained at, small dots single seeds.
    """
    from matplotlib.figure import Figure

    series = series_of(results)
    with styled():
        figure = Figure(figsize=(8.4, 5.0), layout="constrained")
        axes = figure.subplots()
        shades = colours([not line.twin for line in series])
        for line, shade in zip(series, shades, strict=True):
            _draw_line(axes, line, shade)
        _dress(axes, series)
        _label_ends(axes, series, shades)
        figure.savefig(path)
    return path


def curve_html(results: Sequence[RunResult], path: Path) -> Path:
    """Write the same as one interactive HTML file that works offline."""
    figure = plotly_curve(series_of(results))
    path.write_text(figure.to_html(include_plotlyjs=True, full_html=True, config=CONFIG), "utf-8")
    return path


def plotly_curve(series: Sequence[Series]) -> go.Figure:
    """The same figure for a browser, with exact numbers on hover."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for line, shade in zip(series, colours([not line.twin for line in series]), strict=True):
        figure.add_trace(_trace(line, shade))
    counts = series[0].counts
    figure.update_layout(
        title={"text": f"<b>{TITLE}</b>", "x": 0.01},
        font={"family": FONTS, "size": 14, "color": INK},
        plot_bgcolor="white",
        paper_bgcolor="white",
        hovermode="x unified",
        legend={"title": {"text": "AUTC"}},
        margin={"l": 70, "r": 20, "t": 60, "b": 60},
    )
    figure.update_xaxes(
        type="log", tickvals=counts, ticktext=list(map(str, counts)), title="visual tokens", gridcolor=GRID
    )
    figure.update_yaxes(title=metric_label(series), gridcolor=GRID, rangemode="tozero")
    return figure


def embed(figure: go.Figure) -> str:
    """A figure's own part of a page; plotly itself is in the page once."""
    return figure.to_html(include_plotlyjs=False, full_html=False, config=CONFIG)


def _draw_line(axes: Axes, line: Series, shade: str) -> None:
    counts = line.counts
    values = [line.points[count].quality for count in counts]
    style: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.6} if line.twin else {"linewidth": 2.6}
    axes.plot(counts, values, color=shade, zorder=2, **style)
    below = [line.points[count].quality - line.points[count].ci[0] for count in counts]
    above = [line.points[count].ci[1] - line.points[count].quality for count in counts]
    axes.errorbar(counts, values, yerr=[below, above], fmt="none", ecolor=shade, elinewidth=1.4, capsize=3, zorder=3)
    for count, value in zip(counts, values, strict=True):
        face = shade if count in line.trained else "white"
        axes.plot(count, value, "o", ms=7, mfc=face, mec=shade, mew=1.8, zorder=4)
    if len(line.seeds) > 1:
        for seed in line.seeds:
            beside = [count * SEED_SHIFT for count in counts]
            axes.plot(beside, [seed[count] for count in counts], ".", color=shade, ms=4, alpha=0.7, zorder=3)


def _dress(axes: Axes, series: Sequence[Series]) -> None:
    counts = series[0].counts
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, labels=list(map(str, counts)))
    axes.minorticks_off()
    axes.set_xlim(counts[0] / 1.15, counts[-1] * 1.15)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("visual tokens")
    axes.set_ylabel(metric_label(series))
    axes.set_title(TITLE, pad=26)
    seeds = max(len(line.seeds) for line in series)
    dots = f", dots are {seeds} seeds" if seeds > 1 else ""
    note = f"filled: trained at, hollow: never trained at; bars are 95 % intervals{dots}"
    axes.text(0, 1.025, note, transform=axes.transAxes, color=MUTED, fontsize=10, va="bottom")


def _label_ends(axes: Axes, series: Sequence[Series], shades: Sequence[str]) -> None:
    """Name each line at its right end, moved apart where two would overlap."""
    last = series[0].counts[-1]
    wanted = sorted((line.points[last].quality, index) for index, line in enumerate(series))
    heights = spread([height for height, _ in wanted], LABEL_GAP * (axes.get_ylim()[1] - axes.get_ylim()[0]))
    for (_, index), height in zip(wanted, heights, strict=True):
        line = series[index]
        axes.annotate(
            f"{line.label}  {line.autc:.3f}",
            (last, height),
            xytext=(18, 0),
            textcoords="offset points",
            color=shades[index],
            va="center",
            fontsize=11,
            fontweight="normal" if line.twin else "bold",
            annotation_clip=False,
        )
    axes.annotate(
        "AUTC",
        (last, heights[-1]),
        xytext=(18, 12),
        textcoords="offset points",
        color=MUTED,
        fontsize=10,
        annotation_clip=False,
    )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Increasing heights moved as little as keeps neighbours `gap` apart, their mean kept within each cluster."""
    clusters: list[tuple[float, int]] = []
    for height in heights:
        centre, size = height, 1
        while clusters and centre - (size - 1) * gap / 2 < clusters[-1][0] + (clusters[-1][1] - 1) * gap / 2 + gap:
            before, num = clusters.pop()
            centre, size = (before * num + centre * size) / (num + size), num + size
        clusters.append((centre, size))
    return [centre + (i - (size - 1) / 2) * gap for centre, size in clusters for i in range(size)]


def _trace(line: Series, shade: str) -> go.Scatter:
    import plotly.graph_objects as go

    counts = line.counts
    points = [line.points[count] for count in counts]
    return go.Scatter(
        x=counts,
        y=[point.quality for point in points],
        name=f"{line.label}  {line.autc:.3f}",
        mode="lines+markers",
        line={"color": shade, "dash": "dash" if line.twin else "solid", "width": 2 if line.twin else 3},
        marker={
            "size": 9,
            "color": [shade if count in line.trained else "white" for count in counts],
            "line": {"color": shade, "width": 2},
        },
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [point.ci[1] - point.quality for point in points],
            "arrayminus": [point.quality - point.ci[0] for point in points],
            "thickness": 1.4,
        },
        customdata=[
            [*point.ci, point.n, "trained" if c in line.trained else "untrained"]
            for c, point in zip(counts, points, strict=True)
        ],
        hovertemplate="%{y:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f}, n %{customdata[2]:,}, %{customdata[3]})",
    )

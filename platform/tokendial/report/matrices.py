"""The trained-at × served-at matrix as a heat map: a twin's own count framed, the flexible model apart below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokendial.curve import Matrix
from tokendial.report.curves import CONFIG
from tokendial.report.palette import FONTS, HEAT, INK, MUTED, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

TITLE = "Trained at × served at"


def matrix_png(matrix: Matrix, path: Path) -> Path:
    """Write the heat map as PNG, a cell for each model (row) and served count (column)."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    with styled():
        width, height = 2.4 + 0.95 * len(matrix.counts), 2.2 + 0.62 * len(matrix.rows)
        figure = Figure(figsize=(max(6.4, width), height), layout="constrained")
        axes = figure.subplots()
        mesh = axes.pcolormesh(_edges(len(matrix.counts)), _row_edges(matrix), _grid(matrix), cmap=HEAT, vmin=0, vmax=1)
        for row, column, value in _cells(matrix):
            centre = (column + 0.5, _row_centre(matrix, row))
            axes.text(*centre, f"{value:.2f}", ha="center", va="center", color=_ink(value), fontsize=12)
            if matrix.rows[row] == str(matrix.counts[column]):
                corner = (column + 0.06, centre[1] - 0.44)
                axes.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, edgecolor="white", linewidth=2.5))
        axes.set_xticks([i + 0.5 for i in range(len(matrix.counts))], labels=list(map(str, matrix.counts)))
        axes.set_yticks([_row_centre(matrix, i) for i in range(len(matrix.rows))], labels=_row_labels(matrix))
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("served at (visual tokens)")
        axes.set_ylabel("trained at")
        axes.set_title(TITLE, pad=26)
        axes.text(0, 1.03, note(matrix), transform=axes.transAxes, color=MUTED, fontsize=10, va="bottom")
        figure.colorbar(mesh, ax=axes, label="quality", fraction=0.04, pad=0.02)
        figure.savefig(path)
    return path


def matrix_html(matrix: Matrix, path: Path) -> Path:
    """Write the heat map as one interactive HTML file, intervals on hover."""
    figure = plotly_matrix(matrix, TITLE)
    path.write_text(figure.to_html(include_plotlyjs=True, full_html=True, config=CONFIG), "utf-8")
    return path


def plotly_matrix(matrix: Matrix, title: str) -> go.Figure:
    """The heat map for a browser."""
    import plotly.graph_objects as go

    figure = go.Figure(
        go.Heatmap(
            x=[str(count) for count in matrix.counts],
            y=_row_labels(matrix),
            z=matrix.quality,
            zmin=0,
            zmax=1,
            colorscale=HEAT.title(),
            text=[[f"{value:.3f}" for value in row] for row in matrix.quality],
            texttemplate="%{text}",
            customdata=[[list(interval) for interval in row] for row in matrix.ci],
            hovertemplate="trained at %{y}, served at %{x}: %{z:.4f}"
            " (%{customdata[0]:.4f} to %{customdata[1]:.4f})<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    for row, label in enumerate(matrix.rows):
        for column, count in enumerate(matrix.counts):
            if label == str(count):
                box = {"x0": column - 0.45, "x1": column + 0.45, "y0": row - 0.43, "y1": row + 0.43}
                figure.add_shape(type="rect", **box, line={"color": "white", "width": 3})
    figure.update_layout(
        title={"text": f"<b>{title}</b><br><sup>{note(matrix)}</sup>", "x": 0.01},
        font={"family": FONTS, "size": 14, "color": INK},
        margin={"l": 110, "r": 20, "t": 80, "b": 60},
        plot_bgcolor="white",
    )
    figure.update_xaxes(title="served at (visual tokens)", type="category")
    figure.update_yaxes(title="trained at", autorange="reversed", type="category")
    return figure


def note(matrix: Matrix) -> str:
    """What the twins share with the flexible model, and how many seeds the cells average."""
    shared = {"steps": "the same steps and data", "flops": "the same FLOPs"}[matrix.kind]
    num = len(matrix.seeds)
    return f"twins had {shared} as the flexible model; mean of {num} seed{'s' if num > 1 else ''}"


def _row_labels(matrix: Matrix) -> list[str]:
    return [f"fixed {label}" if label.isdigit() else label for label in matrix.rows]


def _edges(num: int) -> list[float]:
    return [float(i) for i in range(num + 1)]


def _row_edges(matrix: Matrix) -> list[float]:
    """Rows are one high; an empty strip of 0.25 sets the flexible model's row apart."""
    last = len(matrix.rows) - 1
    return [*_edges(last), last + 0.25, last + 1.25] if last else [0.0, 1.0]


def _row_centre(matrix: Matrix, row: int) -> float:
    return row + 0.5 + (0.25 if row and row == len(matrix.rows) - 1 else 0.0)


def _grid(matrix: Matrix) -> list[list[float]]:
    rows = [list(row) for row in matrix.quality]
    return [*rows[:-1], [float("nan")] * len(matrix.counts), rows[-1]] if len(rows) > 1 else rows


def _cells(matrix: Matrix) -> list[tuple[int, int, float]]:
    return [(r, c, value) for r, row in enumerate(matrix.quality) for c, value in enumerate(row)]


def _ink(value: float) -> str:
    return "white" if value < 0.55 else INK

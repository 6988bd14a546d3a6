"""Colours and type of every figure: the colour-blind-safe set of Okabe & Ito (2008), one sans-serif face."""

from contextlib import AbstractContextManager
from typing import Any

INK = "#1f2430"
MUTED = "#6b7280"
GRID = "#e5e7eb"
FLEXIBLE = "#0072B2"
OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00", "#5B5B5B")
RIGHT = "#d3ecdf"
WRONG = "#fbe1d3"
HEAT = "cividis"
FONTS = "Inter, 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"

MATPLOTLIB: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 12,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
}


def styled() -> AbstractContextManager[None]:
    """Draw what is inside in the project's style, leaving matplotlib's own settings as they were."""
    import matplotlib as mpl

    return mpl.rc_context(MATPLOTLIB)


def colours(flexible: list[bool]) -> list[str]:
    """One colour per series: blue for the first flexible model, distinct others for the rest."""
    rest = iter(OTHERS * (1 + len(flexible) // len(OTHERS)))
    first = flexible.index(True) if True in flexible else -1
    return [FLEXIBLE if index == first else next(rest) for index in range(len(flexible))]

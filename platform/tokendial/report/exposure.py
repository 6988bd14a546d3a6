"""What a token schedule spends and whom it trains: draw probabilities, exposure S(i) = P(K >= i), and E[k]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendial.report.palette import FLEXIBLE, HEAT, MUTED, OTHERS, styled
from tokendial.schedule import TokenSchedule
from tokendial.schedule.draw import TOTAL
from tokendial.schedule.stats import expected_count, expected_passes, exposure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 256


def exposure_png(schedule: TokenSchedule, path: Path, horizon: int = 4096) -> Path:
    """Write the figure: passes per example at each count, exposure of each prefix token, the law over the run."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(12.6, 4.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        _draw_passes(left, schedule, horizon)
        _draw_exposure(middle, schedule, horizon)
        _draw_law(right, schedule, horizon)
        figure.suptitle(f"Token schedule {schedule.config.preset}", x=0.01, ha="left", fontsize=14, fontweight="bold")
        figure.savefig(path)
    return path


def _draw_passes(axes: Axes, schedule: TokenSchedule, horizon: int) -> None:
    shares = expected_passes(schedule, horizon)
    positions = range(len(shares))
    axes.bar(positions, shares, color=FLEXIBLE, width=0.7)
    for position, share in zip(positions, shares, strict=True):
        if len(shares) <= 12:
            axes.text(position, share, f"{share:.2f}", ha="center", va="bottom", fontsize=11)
    _name_counts(axes, schedule)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, max(shares) * 1.14)
    axes.set_xlabel("visual tokens")
    axes.set_title("Passes per example and step", fontsize=12)


def _draw_exposure(axes: Axes, schedule: TokenSchedule, horizon: int) -> None:
    counts = schedule.counts
    edges = [1, *counts]
    heights = [exposure(schedule, horizon, count) for count in counts]
    axes.stairs(heights, edges, baseline=None, color=FLEXIBLE, linewidth=2.6)
    axes.set_xscale("log", base=2)
    shown = _apart([1, *counts])
    axes.set_xticks(shown, labels=list(map(str, shown)))
    axes.minorticks_off()
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("token i of the prefix")
    axes.set_title("Exposure S(i) = P(K ≥ i)", fontsize=12)
    mean = expected_count(schedule, horizon)
    label = f"E[k] = {mean:.1f}"
    if mean <= counts[-1]:
        axes.axvline(mean, color=MUTED, linewidth=1.2, linestyle=(0, (3, 3)))
        axes.annotate(label, (mean, 0.05), xytext=(-6, 0), textcoords="offset points", color=MUTED, ha="right")
    else:
        axes.text(0.03, 0.04, f"{label}, over several passes", transform=axes.transAxes, color=MUTED)


def _apart(counts: Sequence[int]) -> list[int]:
    """Counts at least a factor of 2 apart, the largest among them, so that labels on a log axis do not touch."""
    chosen: list[int] = []
    for count in sorted(set(counts), reverse=True):
        if not chosen or 2 * count <= chosen[-1]:
            chosen.append(count)
    return chosen[::-1]


def _draw_law(axes: Axes, schedule: TokenSchedule, horizon: int) -> None:
    num = min(POINTS, horizon)
    laws = [[share / TOTAL for share in schedule.law(step, num)] for step in range(num)]
    x = [step / num for step in range(num)]
    columns = list(zip(*laws, strict=True))
    axes.stackplot(x, columns, colors=_shades(len(columns)), linewidth=0, antialiased=len(columns) < 20)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("training progress")
    axes.set_title("Law over the run", fontsize=12)
    below = 0.0
    for count, share in zip(schedule.counts, laws[-1], strict=True):
        if share > 0.04 or count in (schedule.counts[0], schedule.counts[-1]):
            axes.text(1.02, below + share / 2, str(count), va="center", fontsize=11, clip_on=False)
        below += share


def _name_counts(axes: Axes, schedule: TokenSchedule) -> None:
    counts = schedule.counts
    every = -(-len(counts) // 8)
    axes.set_xticks(range(0, len(counts), every), labels=[str(count) for count in counts[::every]])


def _shades(num: int) -> list[Any]:
    """Distinct colours for a few counts, an even ramp for many."""
    import matplotlib as mpl

    few = [FLEXIBLE, *OTHERS]
    return few[:num] if num <= len(few) else list(mpl.colormaps[HEAT]([i / (num - 1) for i in range(num)]))

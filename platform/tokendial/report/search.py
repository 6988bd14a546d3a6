"""The report of a search: one offline HTML page, and its main figure as PNG.

Curves of all trials coloured by rank, the Pareto front over cost, parallel coordinates over the parameters, how much of
the variance each parameter explains, groups over seeds with intervals, and every trial with its cause where it failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tokendial.report.curves import embed
from tokendial.report.page import cell, page, section, table
from tokendial.report.palette import FLEXIBLE, FONTS, GRID, INK, MUTED, styled
from tokendial.search.domains import Choice
from tokendial.search.found import SearchResult, TrialRow
from tokendial.search.space import Space, scalars

if TYPE_CHECKING:
    import plotly.graph_objects as go

SCALE = "Viridis"


def search_html(result: SearchResult, space: Space) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    finished = ranked(result)
    parts = [section("Groups over seeds", _about_groups(result), _groups(result))]
    if finished:
        parts += [
            section("Curves", "every finished trial, the best in dark blue", embed(curves_figure(result))),
            section("Pareto front", "quality over the cost of an answer", embed(front_figure(result))),
        ]
    names = [name for name in scalars(space) if len({str(row.chosen[name]) for row in finished}) > 1]
    if len(finished) > 2 and names:
        parts += [
            section(
                "Parameters", f"a line a trial, coloured by {result.objectives[0]}", embed(_parallel(result, space))
            ),
            section(
                "What matters",
                "share of its variance that a parameter alone explains, beyond chance",
                _importance(result, space),
            ),
        ]
    parts += [
        section("Trials", _about_trials(result), _trials(result)),
        section("Compute", "", _compute(result)),
    ]
    note = f"{result.experiment} · {result.algorithm} · objectives {', '.join(result.objectives)} · on validation"
    return page(result.name, note, parts, script=get_plotlyjs())


def ranked(result: SearchResult) -> list[TrialRow]:
    """Finished trials, best first."""
    first = result.objectives[0]
    finished = [row for row in result.trials if row.outcome.status == "FINISHED"]
    return sorted(finished, key=lambda row: -row.outcome.values[first])


def curves_png(result: SearchResult, path: Path) -> Path:
    """The curves of all finished trials, coloured by rank."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = ranked(result)
    with styled():
        figure = Figure(figsize=(8.4, 5.0), layout="constrained")
        axes = figure.subplots()
        for place, row in reversed(list(enumerate(rows))):
            counts = sorted(row.outcome.curve)
            shade = FLEXIBLE if place == 0 else colormaps["Greys"](0.25 + 0.5 * (1 - place / len(rows)))
            values = [row.outcome.curve[count] for count in counts]
            axes.plot(counts, values, color=shade, linewidth=2.8 if place == 0 else 1.2)
        counts = sorted(result.costs)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, labels=list(map(str, counts)))
        axes.minorticks_off()
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("visual tokens")
        axes.set_ylabel("quality on validation")
        axes.set_title(f"{len(rows)} trials, the best in blue")
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path)
    return path


def curves_figure(result: SearchResult) -> go.Figure:
    import plotly.graph_objects as go
    from plotly.colors import sample_colorscale

    rows, figure = ranked(result), go.Figure()
    shades = sample_colorscale(SCALE, [0.9 * place / max(1, len(rows) - 1) for place in range(len(rows))])
    for row, shade in reversed(list(zip(rows, shades, strict=True))):
        counts = sorted(row.outcome.curve)
        figure.add_trace(
            go.Scatter(
                x=counts,
                y=[row.outcome.curve[count] for count in counts],
                name=f"{row.number}: {row.outcome.values[result.objectives[0]]:.4f}",
                line={"color": shade},
                hovertext=" ".join(row.overrides),
            )
        )
    counts = sorted(result.costs)
    figure.update_xaxes(type="log", tickvals=counts, ticktext=list(map(str, counts)), title="visual tokens")
    figure.update_yaxes(title="quality", rangemode="tozero")
    return _dressed(figure)


def front_figure(result: SearchResult) -> go.Figure:
    """Every (cost, quality) point of every curve, and the upper envelope of all."""
    import plotly.graph_objects as go

    rows, figure = ranked(result), go.Figure()
    points = sorted((row.outcome.costs[k], q, row.number, k) for row in rows for k, q in row.outcome.curve.items())
    figure.add_trace(
        go.Scatter(
            x=[point[0] for point in points],
            y=[point[1] for point in points],
            text=[f"trial {number}, {count} tokens" for _, _, number, count in points],
            mode="markers",
            marker={"color": MUTED, "size": 6},
            name="trials",
        )
    )
    heights = list(accumulate((quality for _, quality, *_ in points), max))
    line = {"color": FLEXIBLE, "shape": "hv"}
    figure.add_trace(go.Scatter(x=[cost for cost, *_ in points], y=heights, line=line, mode="lines", name="front"))
    figure.update_xaxes(type="log", title="FLOPs of an answer")
    figure.update_yaxes(title="quality", rangemode="tozero")
    return _dressed(figure)


def importance(result: SearchResult, space: Space) -> dict[str, float]:
    """Share of the first objective's variance that each parameter explains by itself, largest first.

    The squared rank correlation for numbers, the variance between choices over all variance for choices; both less what
    chance alone explains of so few trials (Kelley 1935), which is more the more options there are.
    """
    rows = ranked(result)
    values = [row.outcome.values[result.objectives[0]] for row in rows]
    shares = {}
    for name, scalar in scalars(space).items():
        chosen = [row.chosen[name] for row in rows]
        if isinstance(scalar, Choice):
            labels = list(map(str, chosen))
            shares[name] = _beyond_chance(_between(labels, values), len(set(labels)) - 1, len(rows))
        else:
            shares[name] = _beyond_chance(_correlation(list(map(float, chosen)), values) ** 2, 1, len(rows))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _beyond_chance(share: float, freedoms: int, num: int) -> float:
    """A share of variance less what `freedoms` explain of noise; none where no trial is left to tell noise by."""
    left = num - 1 - freedoms
    return max(0.0, 1 - (1 - share) * (num - 1) / left) if left > 0 else 0.0


def _between(labels: Sequence[str], values: Sequence[float]) -> float:
    mean = fmean(values)
    whole = sum((value - mean) ** 2 for value in values)
    groups: dict[str, list[float]] = {}
    for label, value in zip(labels, values, strict=True):
        groups.setdefault(label, []).append(value)
    return sum(len(group) * (fmean(group) - mean) ** 2 for group in groups.values()) / whole if whole else 0.0


def _correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's: Pearson's of the ranks, tied ones averaged."""
    a, b = _ranks(one), _ranks(other)
    mean = fmean(a)
    top = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    bottom = (sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)) ** 0.5
    return top / bottom if bottom else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]


def _parallel(result: SearchResult, space: Space) -> go.Figure:
    import plotly.graph_objects as go

    rows, first = ranked(result), result.objectives[0]
    names = [name for name in list(importance(result, space)) if len({str(row.chosen[name]) for row in rows}) > 1]
    dimensions = [_axis(name, scalars(space)[name], rows) for name in names[:10]]
    values = [row.outcome.values[first] for row in rows]
    dimensions.append({"label": first, "values": values})
    line = {"color": values, "colorscale": SCALE, "reversescale": True, "showscale": True}
    return _dressed(go.Figure(go.Parcoords(dimensions=dimensions, line=line)))


def _axis(name: str, scalar: Any, rows: Sequence[TrialRow]) -> dict[str, Any]:
    short = name.removeprefix("schedule.").removeprefix("optimizer.")
    if isinstance(scalar, Choice):
        texts = [str(option) for option in scalar.options]
        places = [int(scalar.unit(row.chosen[name]) * len(texts)) for row in rows]
        return {"label": short, "values": places, "tickvals": list(range(len(texts))), "ticktext": texts}
    return {"label": short, "values": [row.chosen[name] for row in rows]}


def _importance(result: SearchResult, space: Space) -> str:
    rows = [[cell(name, "text"), cell(f"{share:.2f}")] for name, share in importance(result, space).items() if share]
    return table(["parameter", "share"], rows[:15])


def _about_groups(result: SearchResult) -> str:
    return (
        f"each spent {result.flops_per_trial:.3g} FLOPs (within {100 * result.accounting:.2f} %); intervals are 95 % "
        "bootstraps over (seed, source item), differences are paired over the seeds both have"
    )


def _groups(result: SearchResult) -> str:
    rows = []
    for group in result.groups:
        gap = group.behind
        behind = "" if gap is None else f"{gap.mean:+.4f} ({gap.ci[0]:+.4f} to {gap.ci[1]:+.4f}), p {gap.p:.3f}"
        numbers = ",".join(map(str, group.trials)), group.seeds_told
        interval = f"{group.autc:.4f} ({group.autc_ci[0]:.4f} to {group.autc_ci[1]:.4f})"
        rows.append([cell(group.label, "text"), *map(cell, numbers), cell(interval, "strong"), cell(behind)])
    return table(["what", "trials", "seeds", "AUTC", "the best minus this"], rows)


def _about_trials(result: SearchResult) -> str:
    if len(result.objectives) == 1:
        return "in the order of the search"
    front = ", ".join(map(str, result.front)) or "none"
    return f"in the order of the search; no other beats in both of {' and '.join(result.objectives)}: {front}"


def _trials(result: SearchResult) -> str:
    counts = sorted(result.costs)
    rows = [_trial(row, counts, result) for row in result.trials]
    names = list(result.objectives)
    return table(["trial", "what", "status", *names, "worst regret", "FLOPs", "seconds", *map(str, counts)], rows)


def _trial(row: TrialRow, counts: Sequence[int], result: SearchResult) -> list[str]:
    outcome = row.outcome
    kind = {"FINISHED": "", "PRUNED": "", "FAILED": "wrong"}[outcome.status]
    status = outcome.status.lower() + (f": {outcome.cause}" if outcome.cause else "")
    values = [_number(outcome.values.get(name)) for name in result.objectives]
    regret = f"{row.regret[1]:.3f} at {row.regret[0]}" if row.regret else ""
    curve = [cell(f"{outcome.curve[count]:.3f}" if count in outcome.curve else "") for count in counts]
    best = "strong" if row.number == result.best else ""
    what = " ".join(row.overrides)
    first = [cell(str(row.number), best), cell(what if len(what) < 200 else what[:197] + "...", "text")]
    spent = [cell(f"{outcome.flops:.3g}"), cell(f"{outcome.seconds:.0f}")]
    return [*first, cell(status, kind), *map(cell, values), cell(regret), *spent, *curve]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value < 10 else f"{value:.3g}"


def _compute(result: SearchResult) -> str:
    lines: Mapping[str, str] = {
        "FLOPs of all trials": f"{result.flops:.4g}",
        "FLOPs of the shared towers": f"{result.tower_flops:.4g}",
        "hypervolume of all curves": _number(result.hypervolume),
        "wall seconds": f"{result.wall_seconds:.0f}",
        "utilisation": "" if result.utilisation is None else f"{result.utilisation:.2f}",
        "median seconds of a trial outside its steps": "" if result.overhead_s is None else f"{result.overhead_s:.0f}",
    }
    return table(["", ""], [[cell(name, "text"), cell(text)] for name, text in lines.items()])


def _dressed(figure: go.Figure) -> go.Figure:
    font = {"family": FONTS, "size": 13, "color": INK}
    figure.update_layout(font=font, plot_bgcolor="white", paper_bgcolor="white", height=440)
    figure.update_xaxes(gridcolor=GRID)
    figure.update_yaxes(gridcolor=GRID)
    return figure

"""How panels look: a table of what a panel asks becomes Grafana's own objects through its official SDK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import BigValueColorMode, LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableOption

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8


class Panel(NamedTuple):
    """One panel: `queries` are (PromQL, legend); `unit` is Grafana's; `span` of 24 columns."""

    title: str
    meaning: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "lines"
    span: int = 8
    most: float | None = None


class Row(NamedTuple):
    title: str
    panels: tuple[Panel, ...]


def made(uid: str, title: str, label: str, series: str, rows: Sequence[Row]) -> dashboard.Dashboard:
    """A dashboard whose variable `label` picks among the values that `series` has."""
    board = (
        dashboard.Dashboard(title)
        .uid(uid)
        .tags(["tokendial"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable(label)
            .label(label.capitalize())
            .datasource(SOURCE)
            .query(f"label_values({series}, {label})")
            .refresh(2)  # pyright: ignore[reportArgumentType]
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(VariableOption(selected=True, text="All", value="$__all"))
        )
    )
    for row in rows:
        board = board.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            board = board.with_panel(_panel(panel))
    return board


def _panel(panel: Panel) -> stat.Panel | bargauge.Panel | timeseries.Panel:
    match panel.kind:
        case "number":
            last = common.ReduceDataOptions().calcs(["lastNotNull"])
            chosen = stat.Panel().color_mode(BigValueColorMode.NONE).reduce_options(last)
        case "bars":
            chosen = bargauge.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        case _:
            legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
            chosen = timeseries.Panel().legend(legend).fill_opacity(5).line_width(2)
            if panel.kind == "stacked":
                chosen = chosen.fill_opacity(40).stacking(common.StackingConfig().mode("normal"))  # pyright: ignore
    chosen = chosen.title(panel.title).description(panel.meaning).unit(panel.unit).min(0)
    chosen = chosen.datasource(SOURCE).span(panel.span).height(HEIGHT)
    if panel.most is not None:
        chosen = chosen.max(panel.most)
    for number, (expression, legend_format) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend_format).ref_id(chr(ord("A") + number))
        chosen = chosen.with_target(query.instant() if panel.kind in ("number", "bars") else query.range())
    return chosen

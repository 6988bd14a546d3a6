"""What MLflow's own pages show of an experiment: the table's columns, curves over counts, schedules side by side.

MLflow keeps a view that somebody shares as a tag of the experiment, and a link names it. This one is written where an
experiment gets its first run, so `#/experiments/ID/runs?viewStateShareKey=tokendial` is there for everyone.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

KEY = "tokendial"
TAG = f"mlflow.sharedViewState.{KEY}"
PARAMS = ("schedule.preset", "schedule.weights", "optimizer.lr", "seed")
SECTION = "token-curve"


def experiment_tags(counts: Sequence[int]) -> Mapping[str, str]:
    """Tags that make MLflow show an experiment as training, under the view for an evaluation grid of `counts`."""
    return {"mlflow.experimentKind": "custom_model_development", TAG: json.dumps(view(counts))}


def view(counts: Sequence[int]) -> Mapping[str, Any]:
    """The state of the runs page: at most three counts of the grid have a column."""
    shown = dict.fromkeys((counts[0], counts[len(counts) // 2], counts[-1]))
    qualities = [f"quality/k{count}" for count in shown]
    columns = [*map(_metric, ("autc", *qualities)), *map(_param, PARAMS)]
    curve = {
        "type": "LINE", "metricKey": "curve/quality", "selectedMetricKeys": ["curve/quality"], "xAxisKey": "step",
        "selectedXAxisMetricKey": "", "xAxisScaleType": "log", "scaleType": "linear", "lineSmoothness": 0,
        "range": {"xMin": None, "xMax": None, "yMin": None, "yMax": None}, "displayPoints": True,
    }  # fmt: skip
    parallel = {
        "type": "PARALLEL", "selectedMetrics": ["autc", *qualities], "selectedParams": list(PARAMS[:2]),
        "showAllRuns": False,
    }  # fmt: skip
    section = {
        "uuid": SECTION, "name": "Token curve", "display": True, "isReordered": False, "deleted": False,
        "isGenerated": False, "columns": 2, "cardHeight": 360,
    }  # fmt: skip
    return {
        "selectedColumns": columns,
        "compareRunCharts": [_chart("curve", curve), _chart("parallel", parallel)],
        "compareRunSections": [section],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def _chart(name: str, chart: Mapping[str, Any]) -> Mapping[str, Any]:
    place = {"uuid": name, "metricSectionId": SECTION, "runsCountToCompare": 10}
    return {**place, "deleted": False, "isGenerated": False, **chart}


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _param(name: str) -> str:
    return f"params.`{name}`"

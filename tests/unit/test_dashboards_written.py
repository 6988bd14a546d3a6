"""Dashboards are what their Python says, ask for series that exist, and miss none; rules fire as their tests say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokendial.metrics import SEARCH, SERVE, TRAIN, Series

FOLDER = Path(__file__).parents[2] / "dashboards"
BOARDS = ("training", "search", "serving")
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())


def exposed(series: Series, prefix: str) -> set[str]:
    """Names that Prometheus stores of one series."""
    match series.kind:
        case "counter":
            return {f"{prefix}{series.name}_total"}
        case "histogram":
            return {f"{prefix}{series.name}_{part}" for part in ("bucket", "sum", "count")}
    return {f"{prefix}{series.name}"}


NAMES = {series: exposed(series, "ray_") for series in (*TRAIN, *SEARCH)} | {s: exposed(s, "") for s in SERVE}
# Of Ray itself; that they hold data is for the test with a real Prometheus to say.
STARTS = {
    f"ray_serve_replica_{part}_latency_ms_{kind}" for part in ("startup", "initialization") for kind in ("sum", "count")
}
KNOWN = STARTS.union(*NAMES.values())


def expressions(board: str) -> dict[str, str]:
    """Every query of a dashboard by its panel's title and letter."""
    document = json.loads((FOLDER / f"{board}.json").read_text())
    panels = [panel for panel in document["panels"] if panel["type"] != "row"]
    return {f"{panel['title']} {target['refId']}": target["expr"] for panel in panels for target in panel["targets"]}


def asked(expression: str) -> set[str]:
    return set(re.findall(r"(?:ray_)?tokendial_\w+|ray_serve_\w+", expression))


def test_the_committed_dashboards_are_what_their_python_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, FOLDER / "write.py", tmp_path], check=True)
    for board in BOARDS:
        assert (tmp_path / f"{board}.json").read_text() == (FOLDER / f"{board}.json").read_text(), board


@pytest.mark.parametrize("board", BOARDS)
def test_panels_and_rules_ask_for_series_that_are_emitted(board: str) -> None:
    found = expressions(board)
    assert found
    for title, expression in found.items():
        assert asked(expression), title
        assert asked(expression) <= KNOWN, title


def rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def test_rules_ask_for_series_that_are_emitted_and_say_what_to_do() -> None:
    for rule in rules():
        assert asked(rule["expr"]) <= KNOWN, rule["alert"]
        assert {"summary", "action"} <= rule["annotations"].keys()


def test_every_series_is_shown_by_some_panel() -> None:
    shown = set().union(*(asked(expression) for board in BOARDS for expression in expressions(board).values()))
    assert [series.name for series, names in NAMES.items() if not names & shown] == []


def test_labels_that_panels_group_by_are_labels_of_the_series() -> None:
    labels = {name: {*series.labels, "le"} for series, names in NAMES.items() for name in names}
    labels |= {name: {"deployment", "application"} for name in STARTS}
    for board in BOARDS:
        for title, expression in expressions(board).items():
            common = set.intersection(*(labels[name] for name in asked(expression)))
            for group in re.findall(r"by \(([^)]*)\)", expression):
                wanted = {label.strip() for label in group.split(",")}
                assert wanted <= set().union(*(labels[name] for name in asked(expression))), title
                assert wanted & common, title


def test_every_rule_has_a_test_that_shows_it_firing() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules()}


@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")])
def test_promtool_accepts_configuration_and_rules(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; `make system-deps` installs Prometheus")
    said = subprocess.run([promtool, *arguments], cwd=FOLDER, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr

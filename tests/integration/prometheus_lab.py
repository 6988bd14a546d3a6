"""A real Prometheus on loopback with the project's own configuration, and the queries of the dashboards' panels."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml
from jobs_lab import ROOT, free_ports

FOLDER = ROOT / "dashboards"
OPENER = build_opener(ProxyHandler({}))


@contextmanager
def prometheus(folder: Path, discovery: Path, endpoint: str, key: str = "") -> Iterator[str]:
    """Prometheus under dashboards/prometheus.yml, its addresses replaced, scraping every second; yields its address."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed; `make system-deps` installs it")
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    ray, serve = config["scrape_configs"]
    ray["file_sd_configs"] = [{"files": [str(discovery)], "refresh_interval": "1s"}]
    serve["static_configs"] = [{"targets": [endpoint]}]
    if key:
        serve["authorization"] = {"credentials": key}
    shutil.copy(FOLDER / "alerts.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_ports(1)[0]
    arguments = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(
            [program, *arguments, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def queries(board: str) -> Mapping[str, str]:
    """Every query of a dashboard by panel and letter, its variables filled in as Grafana does for `All`."""
    document = json.loads((FOLDER / f"{board}.json").read_text())
    found = {}
    for panel in document["panels"]:
        for target in panel.get("targets", []):
            filled = target["expr"].replace("$run", ".*").replace("$model", ".*").replace("$__rate_interval", "10s")
            found[f"{board}: {panel['title']} {target['refId']}"] = filled
    return found


def ask(address: str, expression: str) -> list[float]:
    """The values that a query has now, those that are no number left out."""
    with OPENER.open(f"{address}/api/v1/query?{urlencode({'query': expression})}", timeout=10) as answer:
        result = json.load(answer)["data"]["result"]
    values = [float(series["value"][1]) for series in result]
    return [value for value in values if value == value]


def collect(address: str, wanted: Mapping[str, str], going: Callable[[], bool], limit_s: float = 240) -> set[str]:
    """Panels that had no data at any time while something was going on."""
    missing = set(wanted)
    deadline = time.monotonic() + limit_s
    while missing and going() and time.monotonic() < deadline:
        for title in sorted(missing):
            try:
                if ask(address, wanted[title]):
                    missing.discard(title)
            except OSError:
                break
        time.sleep(1)
    return missing

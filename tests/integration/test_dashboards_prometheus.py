"""Every panel has data: a real Prometheus reads a real run, a real search and a real endpoint under load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_lab import TINY, Place, local_cluster
from prometheus_lab import collect, prometheus, queries

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with local_cluster(RAY_metrics_report_interval_ms="1000") as place:
        yield place


def test_every_panel_of_training_has_data(place: Place, tmp_path: Path) -> None:
    discovery = place.home.parent / "ray" / "prom_metrics_service_discovery.json"
    with prometheus(tmp_path, discovery, "127.0.0.1:1") as address:
        run = place.start(
            tmp_path, "train", "digits.tiny", "schedule=tokenflex", "budget.steps=600", "checkpoint.every=10",
            "evaluation.every=20", "evaluation.validation_examples=4", *TINY[2:], "workers=2", "--on", place.url,
            "--name", "panels",
        )  # fmt: skip
        try:
            missing = collect(address, queries("training"), lambda: run.poll() is None)
            assert missing == set(), "panels without data"
        finally:
            place.say(tmp_path, "stop", "panels")
            run.communicate(timeout=120)


def test_every_panel_of_searches_has_data(place: Place, tmp_path: Path) -> None:
    discovery = place.home.parent / "ray" / "prom_metrics_service_discovery.json"
    with prometheus(tmp_path, discovery, "127.0.0.1:1") as address:
        search = place.start(
            tmp_path, "search", "digits.tiny", *TINY[1:], "budget.steps=30", "seed=0,1,2,3", "--on", place.url,
            "--name", "panels-search",
        )  # fmt: skip
        try:
            missing = collect(address, queries("search"), lambda: search.poll() is None)
            assert missing == set(), "panels without data"
        finally:
            place.say(tmp_path, "stop", "panels-search")
            search.communicate(timeout=120)

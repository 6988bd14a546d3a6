"""The pictures of docs/comparing.md: a few runs and a search, and MLflow's own pages about them in headless Chromium.

python docs/images/pictures.py        # Linux with `make system-deps`; writes docs/images/mlflow-*.png
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
SHORT = (
    "stages=[{\"name\": \"all\", \"share\": 1}]", "budget.steps=60", "evaluation.counts=[1,4,16,144]",
    "evaluation.test_examples=64", "evaluation.validation_examples=32", "evaluation.table_examples=4",
)  # fmt: skip
WEIGHTS = ("[2,3,5]", "[1,1,1]", "[5,3,2]")
SEARCH = ("schedule=tokenflex,curriculum", "optimizer.lr=2e-3,8e-3")
MODEL = "tokendial-digits"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def make_runs() -> None:
    """Three laws over the same counts, a search of four trials, and its best trial as champion."""
    from tokendial import api
    from tokendial.resolve import resolve

    for weights in WEIGHTS:
        config = resolve("digits.tiny", ["schedule=tokenflex", f"schedule.weights={weights}", *SHORT])
        api.train(config, name="weights-" + "-".join(weights[1:-1].split(",")))
    api.search("digits.tiny", [*SEARCH, *SHORT], name="laws", algorithm="grid")
    api.promote("laws", model=MODEL)


@contextmanager
def server(home: Path) -> Iterator[str]:
    """MLflow over a runs folder, as `make mlflow` starts it; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--allowed-hosts", "localhost:*,127.0.0.1:*", "--backend-store-uri", "sqlite:///mlflow.db",
        "--artifacts-destination", "mlartifacts",
    ]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], limit_s: float = 120) -> None:
    opener, deadline = build_opener(ProxyHandler({})), time.monotonic() + limit_s
    while True:
        try:
            opener.open(address, timeout=5).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MLflow did not start at {address}") from error
            time.sleep(0.3)


def shoot(address: str, folder: Path) -> None:
    """A picture of each page, once what it is for is on it."""
    from mlflow import MlflowClient

    experiment = MlflowClient(address).get_experiment_by_name("digits.tiny")
    assert experiment is not None
    runs = f"{address}/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=tokendial"
    with browser() as page:
        page.goto(runs)
        search = page.get_by_placeholder("metrics.rmse")
        search.fill("attributes.run_name LIKE 'weights-%'")
        search.press("Enter")
        page.get_by_text("laws", exact=True).first.wait_for(state="detached")
        for text in ("weights-5-3-2", "autc", "quality/k16", "quality/k144", "schedule.preset"):
            expect_text(page, text)
        picture(page, folder / "mlflow-runs.png")
        page.get_by_role("radio").nth(1).locator("xpath=ancestor-or-self::label").click()
        for text in ("Token curve", "curve/quality", "Parallel Coordinates"):
            expect_text(page, text)
        page.locator(".js-plotly-plot").nth(0).wait_for()
        page.locator("text=quality/k144").first.wait_for()
        picture(page, folder / "mlflow-compare.png")
        page.goto(runs)
        expect_text(page, "laws")
        page.locator("[role=row]", has_text="laws").locator("button").first.click()
        expect_text(page, "laws.000")
        picture(page, folder / "mlflow-search.png")
        page.goto(f"{address}/#/models/{MODEL}/versions/1")
        for text in ("champion", "Ladder on test"):
            expect_text(page, text)
        picture(page, folder / "mlflow-model.png")


@contextmanager
def browser() -> Iterator[Page]:
    if CHROMIUM is None:
        raise RuntimeError("no chromium or google-chrome is installed; `make system-deps` installs one")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 1360, "height": 760})
        # As if the panel at the right had been closed, and training chosen, by hand once.
        page.add_init_script(
            """localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
            localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
            localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');"""
        )
        yield page
        opened.close()


def expect_text(page: Page, text: str) -> None:
    page.get_by_text(text).locator("visible=true").first.wait_for(timeout=60_000)


def picture(page: Page, path: Path) -> None:
    # Tables and charts fade and slide into place.
    page.wait_for_timeout(1500)
    page.screenshot(path=path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="tokendial-pictures-") as home:
        os.environ["TOKENDIAL_HOME"] = home
        make_runs()
        with server(Path(home)) as address:
            shoot(address, HERE)

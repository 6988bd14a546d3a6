"""A configuration, a result, a real MLflow server in its own process, and servers that fail in a chosen way."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
from tokendial.bench.cluster import free_ports
from tokendial.contracts import BudgetConfig, DataConfig, EvaluationConfig, ModelConfig, RunConfig, TrackingConfig
from tokendial.curve import CurvePoint, autc
from tokendial.identity import Identity
from tokendial.ledger import Ledger
from tokendial.results import RunResult
from tokendial.schedule import preset
from tokendial.tracking import default_uri
from tokendial.tracking.server import connect

IDENTITY = Identity(user="ada", commit="c0ffee", diff="+ one line")
DIGESTS = {"train": "a" * 64, "test": "b" * 64}
CURVE = {4: CurvePoint(0.3, (0.28, 0.33), 100), 16: CurvePoint(0.96, (0.94, 0.97), 100)}


def config(**changes: Any) -> RunConfig[Any]:
    whole = RunConfig(
        experiment="digits.tiny",
        workload="digits",
        description="a tiny run",
        model=ModelConfig(),
        schedule=preset("tokenflex", (4, 16, 144)),
        data=DataConfig(),
        budget=BudgetConfig(steps=10),
        evaluation=EvaluationConfig(counts=(4, 16)),
        tracking=TrackingConfig(price_per_hour=2.0),
    )
    return whole.model_copy(update=changes)


def result(run_dir: Path, run_id: str | None, **changes: Any) -> RunResult:
    model = run_dir / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    ledger = Ledger(price_per_hour=2.0)
    ledger.add(4, visual_tokens=128, flops=1e9, steps=10)
    ledger.steps = 10
    fields: dict[str, Any] = {
        "run_id": run_id,
        "name": run_dir.name,
        "status": "FINISHED",
        "curve": CURVE,
        "autc": autc(CURVE),
        "groups": {"read it": {4: 0.2, 16: 0.9}},
        "extras": {"token F1": {4: 0.4}},
        "metric": "accuracy",
        "split": "test",
        "workload": "digits",
        "schedule": "tokenflex",
        "trained_counts": (4, 16, 144),
        "steps": 10,
        "ledger": ledger.to_json(),
        "model_dir": str(model),
    }
    return RunResult(**(fields | changes))


@functools.cache
def _empty_database() -> Path:
    """A database with MLflow's tables, made once: making them takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="tokendial-mlflow-", dir=os.environ["TOKENDIAL_HOME"]))
    connect(default_uri(folder)).search_experiments()
    return folder / "mlflow.db"


def fresh_store(home: Path) -> str:
    """URI of a new SQLite store under `home`."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(_empty_database(), home / "mlflow.db")
    return default_uri(home)


class Server:
    """`mlflow server` on one port over one store; it can be killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = fresh_store(home)
        self.port = free_ports(1)[0]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.store]
        command += ["--artifacts-destination", (self.home / "artifacts").as_uri()]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, start_new_session=True, env=environment, stdout=quiet, stderr=quiet)
        deadline = time.monotonic() + 180
        while not self._answers():
            assert time.monotonic() < deadline, "mlflow server did not start within 180 s"
            assert self._process.poll() is None, "mlflow server ended at its start"
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.uri}/health", timeout=1).ok
        except requests.RequestException:
            return False


@contextmanager
def failing_server(how: int | None) -> Iterator[str]:
    """A server that answers every request with the status `how`, or takes requests and never answers (None)."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            if how is None:
                released.wait(60)
            self.send_response(how or 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_PATCH = _answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        released.set()
        server.shutdown()
        server.server_close()
        thread.join()

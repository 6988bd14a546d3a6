"""A server that is killed, hangs or answers with errors: training never waits, and every point arrives once."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokendial.bench.cluster import free_ports
from tokendial.contracts import TrackingConfig
from tokendial.tracking.finish import finish, settle
from tokendial.tracking.opening import open_run
from tokendial.tracking.server import TrackingUnavailable, connect
from tokendial.tracking.writer import MetricWriter
from tracking_samples import IDENTITY, Server, config, failing_server, fresh_store, result

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "ada.digits.tiny.1234"
    folder.mkdir()
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def logged_steps(uri: str, run_id: str) -> list[int]:
    return [metric.step for metric in connect(uri).get_metric_history(run_id, "train/loss")]


def log_steps(writer: MetricWriter, steps: range, pause_s: float = 0.0) -> list[float]:
    """Seconds that each call took its caller."""
    taken = []
    for step in steps:
        start = time.perf_counter()
        writer.log(step, {"train/loss": 1 / (step + 1), "train/lr": 1e-3})
        taken.append(time.perf_counter() - start)
        time.sleep(pause_s)
    return taken


def p99(taken: list[float]) -> float:
    return sorted(taken)[int(0.99 * len(taken))]


def test_a_server_killed_in_the_middle_gets_every_point_once(server: Server, run_dir: Path):
    run_id = open_run(config(), IDENTITY, server.uri, run_dir)
    assert run_id is not None
    writer = MetricWriter(server.uri, run_id, run_dir / "tracking", interval_s=0.1)
    taken = log_steps(writer, range(300), pause_s=0.002)
    server.kill()
    taken += log_steps(writer, range(300, 600), pause_s=0.005)
    assert writer.pending_bytes > 0
    server.start()
    taken += log_steps(writer, range(600, 900), pause_s=0.002)
    assert writer.close(timeout_s=120)
    assert finish(server.uri, run_dir, result(run_dir, run_id))
    assert logged_steps(server.uri, run_id) == list(range(900))
    assert p99(taken) <= 0.005
    client = connect(server.uri)
    assert client.get_run(run_id).info.status == "FINISHED"
    (model,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert {metric.key for metric in model.metrics or []} >= {"quality/k4", "quality/k16"}


def test_a_server_away_at_the_start_gets_the_whole_run_later(tmp_path: Path, run_dir: Path):
    away = f"http://127.0.0.1:{free_ports(1)[0]}"
    start = time.monotonic()
    assert open_run(config(), IDENTITY, away, run_dir) is None
    assert time.monotonic() - start < 5
    writer = MetricWriter(away, None, run_dir / "tracking", interval_s=0.1)
    log_steps(writer, range(50))
    assert not writer.close()
    assert not finish(away, run_dir, result(run_dir, None))
    back = fresh_store(tmp_path / "back")
    assert settle(back, run_dir)
    client = connect(back)
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert logged_steps(back, run.info.run_id) == list(range(50))
    assert settle(back, run_dir)
    assert logged_steps(back, run.info.run_id) == list(range(50))


def test_a_strict_run_fails_at_the_start_where_the_server_is_away(run_dir: Path):
    away = f"http://127.0.0.1:{free_ports(1)[0]}"
    start = time.monotonic()
    with pytest.raises(TrackingUnavailable, match="is not usable"):
        open_run(config(tracking=TrackingConfig(strict=True)), IDENTITY, away, run_dir)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("how", [500, 429, None], ids=["error 500", "too many requests", "hangs"])
def test_a_broken_server_neither_stalls_nor_loses(how: int | None, tmp_path: Path, run_dir: Path):
    store = fresh_store(tmp_path / "store")
    run_id = open_run(config(), IDENTITY, store, run_dir)
    assert run_id is not None
    with failing_server(how) as uri:
        writer = MetricWriter(uri, run_id, run_dir / "tracking", interval_s=0.05)
        taken = log_steps(writer, range(200), pause_s=0.001)
        start = time.monotonic()
        assert not writer.close(timeout_s=2)
        # An endless wait would last a minute; a busy machine may take its time.
        assert time.monotonic() - start < 20
    assert p99(taken) <= 0.005
    assert writer.dropped == 0
    assert finish(store, run_dir, result(run_dir, run_id))
    assert logged_steps(store, run_id) == list(range(200))


def test_a_hanging_server_is_given_up_on_at_the_start(run_dir: Path):
    with failing_server(None) as uri:
        start = time.monotonic()
        assert open_run(config(), IDENTITY, uri, run_dir) is None
        assert time.monotonic() - start < 5


KILLED = """
    import sys, time
    from pathlib import Path
    from tokendial.tracking.writer import MetricWriter

    writer = MetricWriter(sys.argv[1], sys.argv[2], Path(sys.argv[3]), interval_s=0.05)
    for step in range(10**9):
        writer.log(step, {"train/loss": 1.0})
        if step == 400:
            print("ready", flush=True)
        time.sleep(0.001)
"""


def test_a_killed_writer_leaves_a_journal_that_the_next_one_completes(tmp_path: Path, run_dir: Path):
    store = fresh_store(tmp_path / "store")
    run_id = open_run(config(), IDENTITY, store, run_dir)
    assert run_id is not None
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED), store, run_id, str(run_dir / "tracking")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        os.kill(victim.pid, signal.SIGKILL)
    writer = MetricWriter(store, run_id, run_dir / "tracking", interval_s=0.05)
    log_steps(writer, range(300, 900))
    assert writer.close(timeout_s=120)
    assert logged_steps(store, run_id) == list(range(900))


def test_a_full_spool_drops_and_counts(run_dir: Path):
    with failing_server(500) as uri:
        writer = MetricWriter(uri, "0" * 32, run_dir / "tracking", interval_s=0.05, cap_bytes=2000)
        log_steps(writer, range(500))
        assert not writer.close(timeout_s=2)
    kept = (run_dir / "tracking" / "metrics.jsonl").read_bytes()
    assert len(kept) <= 2000
    assert writer.dropped == 1000 - 2 * len(kept.splitlines())

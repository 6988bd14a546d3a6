"""The Ray side of training: a TorchTrainer whose workers run `worker.work`. Only this module imports ray.train."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from tokendial import environment
from tokendial.failures import Terminated, WorkFailed
from tokendial.train.worker import Order, Seat, work

COLLECTIVE_TIMEOUT_S = 120
POLL_S = 0.25
Progress = Callable[[Mapping[str, Any]], None]


@ray.remote(num_cpus=0)
class Board:
    """The latest progress of a run, put up by rank 0 and read by the driver."""

    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}

    def put(self, latest: dict[str, Any]) -> None:
        self._latest = latest

    def read(self) -> dict[str, Any]:
        return self._latest


def connect(address: str | None = None) -> None:
    """Join the Ray cluster of this process, or start one on this machine's loopback."""
    if ray.is_initialized():
        return
    with own_signals():
        ray.init(
            address=address or os.environ.get("RAY_ADDRESS"),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=True,
        )
    _protect_token()


def _protect_token() -> None:
    """Ray leaves its authentication token readable by everyone; whoever reads it may run code on the cluster."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)


def cluster_gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def cluster_cpus() -> int:
    return int(ray.cluster_resources().get("CPU", 0))


def train(order: Order, workers: int, max_failures: int, tracking: Mapping[str, Any], progress: Progress) -> None:
    """Run the workers to the end; raises what they raised once `max_failures` restarts are used up."""
    board = Board.remote()
    use_gpu = cluster_gpus() >= workers
    folder = Path(order.folder)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"order": asdict(order), "board": board, "tracking": dict(tracking), "path": sys.path},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1}),
        run_config=RayRunConfig(
            name=f"ray-{time.time_ns():x}",
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=max_failures),
            worker_runtime_env=_worker_runtime_env(),
        ),
    )
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, progress, stop), daemon=True)
    watcher.start()
    try:
        with own_signals():
            fit(trainer)
    except TrainingFailedError as error:
        message = f"training failed after {max_failures} restarts: {_cause(error)}; logs are in {folder}/logs"
        raise WorkFailed(message) from error
    finally:
        stop.set()
        watcher.join()
        ray.kill(board)  # pyright: ignore[reportArgumentType]


def fit(trainer: TorchTrainer) -> None:
    """Train; where this process is told to stop, let Ray end the workers first.

    Ray Train answers SIGINT by aborting its controller and exiting, and knows no answer to SIGTERM.
    """
    try:
        trainer.fit()
    except SystemExit:
        raise KeyboardInterrupt from None
    except Terminated:
        abort = signal.getsignal(signal.SIGINT)
        with suppress(SystemExit):
            abort(signal.SIGINT, None)  # pyright: ignore[reportCallIssue, reportOptionalCall]
        raise


@contextmanager
def own_signals() -> Iterator[None]:
    """Give back the signal handlers that Ray replaces for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _worker_runtime_env() -> dict[str, Any] | None:
    """Variables for workers of a cluster that was there before; one started here has inherited them."""
    return {"env_vars": environment.worker_environment()} if os.environ.get("RAY_ADDRESS") else None


def _cause(error: BaseException) -> str:
    """The last line of the first worker's traceback, which names what went wrong."""
    lines = [line for line in str(error).split("[Rank")[1 if "[Rank" in str(error) else 0].splitlines() if line.strip()]
    return lines[-1].strip()[:500]


def _watch(board: Any, progress: Progress, stop: threading.Event) -> None:
    last: dict[str, Any] = {}
    while not stop.wait(POLL_S):
        latest: dict[str, Any] = ray.get(board.read.remote())  # pyright: ignore[reportAssignmentType]
        if latest != last:
            progress(latest)
            last = latest


def _worker(payload: dict[str, Any]) -> None:
    """Entry of one training worker; it finds a user's own modules where the driver did."""
    environment.apply()
    sys.path += [folder for folder in payload["path"] if folder not in sys.path]
    import torch
    from tokendial.tracking.system import SystemMonitor
    from tokendial.tracking.writer import MetricWriter

    context = ray.train.get_context()
    rank, board = context.get_world_rank(), payload["board"]
    order = Order(**payload["order"])
    _log_to(Path(order.folder) / "logs", rank)
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    tracking = payload["tracking"]
    where = tracking["uri"], tracking["run_id"], Path(order.folder) / "tracking"
    writer = MetricWriter(*where) if rank == 0 else None
    monitor = SystemMonitor(*where) if context.get_local_rank() == 0 else None

    def progress(latest: Mapping[str, Any]) -> None:
        if rank == 0:
            board.put.remote(dict(latest))

    seat = Seat(
        rank=rank,
        world=context.get_world_size(),
        device=get_device(),
        log=lambda step, metrics: writer.log(step, metrics) if writer else None,
        progress=progress,
    )
    try:
        work(order, seat)
    finally:
        if monitor is not None:
            monitor.stop()
        if writer is not None:
            writer.close()


def _log_to(folder: Path, rank: int) -> None:
    """This rank's log file, appended to over restarts."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"rank-{rank}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("tokendial")
    root.setLevel(logging.INFO)
    root.addHandler(handler)

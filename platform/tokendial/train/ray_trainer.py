"""The Ray side of training: a TorchTrainer whose workers run `worker.work`. Only this module imports ray.train."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from socket import gethostname
from typing import Any, cast

import ray
import ray.train
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tokendial import environment
from tokendial.failures import Terminated, WorkFailed
from tokendial.train.board import Board
from tokendial.train.room import GROWS_TO, Room, room
from tokendial.train.worker import Order, Seat, work

COLLECTIVE_TIMEOUT_S = 120
POLL_S = 0.25
ABORT_S = 20
Progress = Callable[[Mapping[str, Any]], None]


class _Introduction(ControllerCallback):
    """Puts the handle of Ray Train's controller, which it gives to nobody, on the board; and that workers were lost."""

    def __init__(self, board: Any, workers: int | tuple[int, int]) -> None:
        self._board, self._workers = board, workers

    def after_controller_start(self, train_run_context: Any) -> None:
        self._board.put_controller.remote([ray.get_runtime_context().current_actor])

    def before_controller_execute_failure_decision(self, failure_decision: FailureDecision) -> None:
        if failure_decision is FailureDecision.RETRY:
            lost = f"workers were lost; starting {self._workers} as soon as there is room"
            self._board.put.remote({"stage": lost, "waits": True})


def connect() -> None:
    """Join the Ray cluster that RAY_ADDRESS names, or start one on this machine's loopback."""
    if ray.is_initialized():
        return
    with own_signals():
        ray.init(
            address=environment.cluster_address(),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=True,
        )
    environment.protect_token()


def cluster_room() -> Room:
    """What the cluster has room for, what it may grow to included."""
    return room(ray.cluster_resources(), os.environ.get(GROWS_TO))


def train(
    order: Order,
    workers: int,
    use_gpu: bool,
    max_failures: int,
    tracking: Mapping[str, Any],
    progress: Progress,
    stop: threading.Event | None = None,
) -> None:
    """Run the workers to the end; raises what they raised once `max_failures` restarts are used up.

    Where `stop` is set meanwhile, the workers are ended and Terminated is raised.
    """
    # Beside the driver: on another node it would be lost with that node, and progress with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Board.options(scheduling_strategy=here).remote()
    folder = Path(order.folder)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "order": asdict(order), "use_gpu": use_gpu, "board": board, "tracking": dict(tracking), "path": sys.path,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1}),
        run_config=RayRunConfig(
            name=f"ray-{time.time_ns():x}",
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=max_failures),
            worker_runtime_env=_worker_runtime_env(),
        ),
    )
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, progress, done), daemon=True)
    watcher.start()
    try:
        fit(trainer, stop)
    except TrainingFailedError as error:
        message = f"training failed after {max_failures} restarts: {_cause(error)}; logs are in {folder}/logs"
        raise WorkFailed(message) from error
    except RayError as error:
        raise WorkFailed(f"Ray lost a part of the run: {_cause(error)}; logs are in {folder}/logs") from error
    finally:
        done.set()
        watcher.join()
        ray.kill(board)  # pyright: ignore[reportArgumentType]


def fit(trainer: TorchTrainer, stop: threading.Event | None = None) -> None:
    """Train; where this process is told to stop, or `stop` is set, end the workers first.

    Ray Train runs in a thread of its own, as its answer to SIGINT in the main thread is to leave the interpreter.
    """
    board = (trainer.train_loop_config or {})["board"]
    trainer.run_config.callbacks = [cast(Any, _Introduction(board, trainer.scaling_config.num_workers))]
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(trainer.fit)
        try:
            while not wait([training], POLL_S).done:
                if stop is not None and stop.is_set():
                    raise Terminated
        except (KeyboardInterrupt, Terminated):
            _abort(board, training)
            raise
    training.result()


def _abort(board: Any, training: Future[Any]) -> None:
    """Have Ray Train's controller end its workers and itself, as soon as there is one.

    One that waits for room in the cluster hears nothing, and has no workers to end.
    """
    while not wait([training], POLL_S).done:
        for controller in ray.get(board.controller.remote()):
            with suppress(RayActorError):
                try:
                    ray.get(controller.abort.remote(), timeout=ABORT_S)
                except GetTimeoutError:
                    ray.kill(controller)


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
    """The last line of the first worker's traceback, which names what went wrong; or that memory ran out."""
    if spent := re.search(r"Memory usage \w+ exceeded threshold.*?limit\)", str(error)):
        return f"this machine ran out of memory and Ray ended workers: {spent[0]}"
    lines = [line for line in str(error).split("[Rank")[1 if "[Rank" in str(error) else 0].splitlines() if line.strip()]
    return lines[-1].strip()[:500]


def _watch(board: Any, progress: Progress, done: threading.Event) -> None:
    last: dict[str, Any] = {}
    while not done.wait(POLL_S):
        latest: dict[str, Any] = ray.get(board.read.remote())  # pyright: ignore[reportAssignmentType]
        if latest != last:
            progress(latest)
            last = latest


def _worker(payload: dict[str, Any]) -> None:
    """Entry of one training worker; it finds a user's own modules where the driver did."""
    environment.apply(payload["use_gpu"])
    sys.path += [folder for folder in payload["path"] if folder not in sys.path]
    import torch
    from tokendial.gauges import TrainingGauges
    from tokendial.tracking.system import SystemMonitor
    from tokendial.tracking.writer import MetricWriter

    context = ray.train.get_context()
    rank, board = context.get_world_rank(), payload["board"]
    order = Order(**payload["order"])
    _log_to(Path(order.folder) / "logs", rank)
    logging.getLogger("tokendial.train").info("rank %d of %d on %s", rank, context.get_world_size(), gethostname())
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    tracking = payload["tracking"]
    where = tracking["uri"], tracking["run_id"], Path(order.folder) / "tracking"
    writer = MetricWriter(*where) if rank == 0 else None
    monitor = SystemMonitor(*where) if context.get_local_rank() == 0 else None
    gauges = TrainingGauges(Path(order.folder).name, rank, order.horizon)

    def log(step: int, values: Mapping[str, float]) -> None:
        if writer is not None:
            writer.log(step, values)
            gauges.logged(values)

    def progress(latest: Mapping[str, Any]) -> None:
        if rank == 0:
            board.put.remote(dict(latest))

    seat = Seat(
        rank=rank,
        world=context.get_world_size(),
        device=get_device(),
        log=log,
        progress=progress,
        flush=lambda: writer.flush() if writer else None,
        stepped=lambda state: gauges.stepped(state.step, len(state.skipped), state.ledger),
        committed=gauges.committed,
    )
    # From here on nothing is waited for that the cluster has to make room for.
    progress({"stage": "loading"})
    try:
        work(order, seat)
    finally:
        gauges.close()
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

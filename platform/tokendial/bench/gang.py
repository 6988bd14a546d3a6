"""Workers for measurements: the same Ray Train set-up as a training run's, around a function of the bench."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from tokendial import environment
from tokendial.train.board import Board
from tokendial.train.ray_trainer import COLLECTIVE_TIMEOUT_S, connect, fit, own_signals

__all__ = ["connect", "disconnect", "run_contest"]


def disconnect() -> None:
    """Leave the cluster; one that `connect` started ends."""
    ray.shutdown()


def run_contest(order: Mapping[str, Any], workers: int) -> list[dict[str, Any]]:
    """What `contest.contest` measured on each rank, in a fresh group of workers."""
    folder = Path(order["folder"])
    board = Board.remote()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"order": dict(order), "board": board},
        torch_config=TorchConfig(backend="gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=f"ray-{time.time_ns():x}",
            storage_path=str(folder / "ray"),
            worker_runtime_env={"env_vars": environment.worker_environment()},
        ),
    )
    try:
        with own_signals():
            fit(trainer)
    finally:
        ray.kill(board)  # pyright: ignore[reportArgumentType]
    return [json.loads((folder / f"rank-{rank}.json").read_text("utf-8")) for rank in range(workers)]


def _worker(payload: dict[str, Any]) -> None:
    """Entry of one worker."""
    environment.apply()
    import torch

    from tokendial.bench.contest import contest

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    context, board = ray.train.get_context(), payload["board"]
    rank = context.get_world_rank()

    def progress(latest: Mapping[str, Any]) -> None:
        board.put.remote(dict(latest))

    measured = contest(payload["order"], rank, context.get_world_size(), get_device(), progress)
    (Path(payload["order"]["folder"]) / f"rank-{rank}.json").write_text(json.dumps(measured), "utf-8")

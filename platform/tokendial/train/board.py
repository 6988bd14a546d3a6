"""Where a run's progress is put up: an actor in a module that imports next to nothing, so that it starts fast."""

from __future__ import annotations

from typing import Any

import ray


@ray.remote(num_cpus=0)
class Board:
    """The latest progress of a run, put up by rank 0 and read by the driver; and who controls the workers."""

    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}
        self._controller: list[Any] = []

    def put(self, latest: dict[str, Any]) -> None:
        self._latest = latest

    def read(self) -> dict[str, Any]:
        return self._latest

    def put_controller(self, controller: list[Any]) -> None:
        self._controller = controller

    def controller(self) -> list[Any]:
        return self._controller

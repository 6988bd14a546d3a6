"""System metrics of one node (CPU, memory, disk, network, GPU) in the same journal-first way as training metrics.

MLflow's own monitor thread ends for good at the first request that fails, so only its probes are used here.
"""

import logging
import re
import socket
import threading
from pathlib import Path
from typing import Any

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from tokendial import environment
from tokendial.tracking.journal import read_metrics
from tokendial.tracking.writer import MetricWriter

logger = logging.getLogger("tokendial.tracking")


class SystemMonitor:
    """Samples this node every `interval_s` seconds and logs means as `system/<node>/<noun>`; start once per node."""

    def __init__(
        self, uri: str, run_id: str | None, spool_dir: Path, node: str | None = None, interval_s: float = 10.0
    ) -> None:
        self.node = re.sub("[^A-Za-z0-9_-]", "-", node or socket.gethostname())
        name = f"system-{self.node}"
        self._step = max((record.step for record in read_metrics(spool_dir / f"{name}.jsonl")), default=-1) + 1
        self._writer = MetricWriter(uri, run_id, spool_dir, name, interval_s=min(5.0, interval_s))
        self._interval_s = interval_s
        self._probes = _probes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="tokendial-system", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 15.0) -> bool:
        """Log the last sample; True where the server has everything."""
        self._stop.set()
        self._thread.join(timeout_s)
        return self._writer.close(timeout_s)

    def _sample(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(self._interval_s)
            values: dict[str, float] = {}
            for probe in self._probes:
                probe.collect_metrics()
                values |= {f"system/{self.node}/{key}": value for key, value in probe.aggregate_metrics().items()}
                probe.clear_metrics()
            self._writer.log(self._step, values)
            self._step += 1


def _probes() -> list[Any]:
    """MLflow's probes; the one of NVIDIA GPUs where there is one."""
    probes: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        probes.append(GPUMonitor())
    except (ImportError, RuntimeError) as error:
        logger.log(logging.WARNING if environment.has_gpu() else logging.DEBUG, "no GPU metrics: %s", error)
    return probes

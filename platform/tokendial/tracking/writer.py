"""Metrics off the training thread: a queue, a thread that journals it, and a thread that sends the journal in batches.

`log` costs its caller microseconds. The server may be away, slow or broken for as long as it likes: records stay in
the journal beside the run and are sent when it is back, at `close`, or by the next process that opens the run.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from mlflow import MlflowClient
from mlflow.entities import Metric

from tokendial.metrics import NAME
from tokendial.tracking.journal import CAP_BYTES, Journal, Record
from tokendial.tracking.opening import ensure_open
from tokendial.tracking.server import AWAY, connect, logger, probe, reason
from tokendial.tracking.uri import redact

MAX_QUEUED = 100_000
BATCH_VALUES = 1000
# While training runs: a batch is some 20 ms of Python, which the training thread may have to wait for.
SMALL_BATCH_VALUES = 200
REST_FACTOR = 4
MAX_NAME_CHARS = 250
MAX_BACKOFF_SECONDS = 30.0


class MetricWriter:
    """Logs one process's metrics to a run. `run_id` None: the run is opened at the server once that is back.

    `spool_dir` is the run's `tracking` folder; each process of a run needs its own `name` there.
    """

    def __init__(
        self,
        uri: str,
        run_id: str | None,
        spool_dir: Path,
        name: str = "metrics",
        interval_s: float = 1.0,
        cap_bytes: int = CAP_BYTES,
    ) -> None:
        self.seconds_on_caller = 0.0
        self.num_logged = 0
        self._uri = uri
        self._run_id = run_id
        self._folder = spool_dir
        self._interval_s = interval_s
        self._queue: deque[Record] = deque()
        self._overflow = 0
        self._known: set[str] = set()
        self._client: MlflowClient | None = None
        self._failing = False
        self._at_server: dict[str, int] | None = None
        self._appending = threading.Lock()
        self._stop_journal, self._stop_sender = threading.Event(), threading.Event()
        self.journal = Journal(spool_dir / f"{name}.jsonl", cap_bytes)
        self._threads = [
            threading.Thread(target=self._keep_journal, name=f"tokendial-journal-{name}", daemon=True),
            threading.Thread(target=self._keep_sending, name=f"tokendial-sender-{name}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queue values of one step; raises ValueError for a name outside the naming scheme."""
        start = time.perf_counter()
        if not self._known.issuperset(values):
            self._check_names(values)
        if len(self._queue) < MAX_QUEUED:
            numbers = {name: float(value) for name, value in values.items()}
            self._queue.append(Record(time.time_ns() // 1_000_000, int(step), numbers))
            self.num_logged += len(values)
        else:
            self._overflow += len(values)
        self.seconds_on_caller += time.perf_counter() - start

    def flush(self) -> None:
        """Return once all that was queued is in the journal; a checkpoint that is behind it may then be committed."""
        start = time.perf_counter()
        self._append()
        self.seconds_on_caller += time.perf_counter() - start

    @property
    def dropped(self) -> int:
        """Values lost because queue, journal or disk was full."""
        return self._overflow + self.journal.dropped

    @property
    def pending_bytes(self) -> int:
        """Bytes in the journal that the server does not have yet."""
        return self.journal.pending_bytes

    def close(self, timeout_s: float = 15.0) -> bool:
        """Journal what is queued, try once more to send, and say whether the server has everything."""
        deadline = time.monotonic() + timeout_s
        self._stop_journal.set()
        self._threads[0].join(timeout_s)
        self._stop_sender.set()
        self._threads[1].join(max(0.0, deadline - time.monotonic()))
        if self.dropped:
            logger.warning("%d metric values were dropped: %s is full", self.dropped, self.journal.path)
        return not self._queue and self.journal.pending_bytes == 0

    def _check_names(self, values: Mapping[str, float]) -> None:
        for name in values:
            if not NAME.fullmatch(name) or len(name) > MAX_NAME_CHARS:
                raise ValueError(f"metric name {name!r} does not fit the naming scheme of tokendial.metrics")
        self._known.update(values)

    def _rest(self, seconds: float) -> None:
        """Leave the interpreter to the training thread after `seconds` of sending, unless the writer is closing."""
        self._stop_sender.wait(REST_FACTOR * seconds)

    def _keep_journal(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop_journal.wait(self._interval_s)
            self._append()

    def _append(self) -> None:
        with self._appending:
            self.journal.append(self._queue.popleft() for _ in range(len(self._queue)))

    def _keep_sending(self) -> None:
        wait_s, stopping = 0.0, False
        while not stopping:
            stopping = self._stop_sender.wait(wait_s)
            wait_s = self._interval_s if self._send() else min(MAX_BACKOFF_SECONDS, 2 * max(wait_s, self._interval_s))

    def _send(self) -> bool:
        """Send all that is journalled; say whether that worked."""
        try:
            if self._client is None or self._failing:
                probe(self._uri)
                self._client = self._client or connect(self._uri)
            self._run_id = self._run_id or ensure_open(self._client, self._uri, self._folder)
            if self._at_server is None:
                self._at_server = _last_steps(self._client, self._run_id) if self.journal.fresh else {}
            send(self._client, self._run_id, self.journal, self._at_server, SMALL_BATCH_VALUES, self._rest)
        except AWAY as error:
            if not self._failing:
                logger.warning(
                    "metrics stay in %s: %s, %s", self.journal.path, redact(self._uri), reason(error, self._uri)
                )
            self._failing = True
            return False
        if self._failing:
            logger.warning("tracking server %s is back; all records were sent", redact(self._uri))
        self._failing = False
        return True


def _no_rest(seconds: float) -> None:
    del seconds


def send(
    client: MlflowClient,
    run_id: str,
    journal: Journal,
    at_server: Mapping[str, int] = MappingProxyType({}),
    limit: int = BATCH_VALUES,
    rest: Callable[[float], None] = _no_rest,
) -> None:
    """Send a journal's unsent records in batches of about `limit` values, remembering how far it got after each.

    `at_server` holds the last step per name that the server had when the journal began: earlier ones are left out.
    `rest` is called with the seconds each batch took.
    """
    journal.bind(run_id)
    while journal.pending_bytes:
        records, offset = journal.unsent(limit)
        metrics = [
            Metric(name, value, record.time_ms, record.step)
            for record in records
            for name, value in record.values.items()
            if record.step > at_server.get(name, -1)
        ]
        started = time.monotonic()
        for start in range(0, len(metrics), BATCH_VALUES):
            client.log_batch(run_id, metrics=metrics[start : start + BATCH_VALUES])
        journal.acknowledge(offset)
        rest(time.monotonic() - started)


def _last_steps(client: MlflowClient, run_id: str) -> dict[str, int]:
    """The last step of every metric of a run: a process on a machine without the run's journal continues behind it."""
    return {metric.key: metric.step for metric in client.get_run(run_id).data._metric_objs}

"""What a run tells Prometheus while it goes on, through Ray's metrics agent of each node; names are in `metrics`.

Only this module imports ray.util.metrics. Outside a Ray process nothing is sent.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray.util import metrics as ray_metrics

from tokendial import metrics
from tokendial.ledger import Ledger
from tokendial.metrics import SEARCH, TRAIN, Series

if TYPE_CHECKING:
    from tokendial.search.trials import Book

KEEP_S = 2.0
_SUMS = ("visual_tokens", "text_tokens", "examples", "flops")


class TrainingGauges:
    """Series of one training worker; rank 0 speaks for the run. A resumed run's counters begin with what it had."""

    def __init__(self, run: str, rank: int, horizon: int) -> None:
        self._series = _made(TRAIN, "tokendial_train_", {"run": run})
        self._rank = str(rank)
        self._closed = threading.Event()
        threading.Thread(target=self._keep, name="tokendial-gauges", daemon=True).start()
        self._before: Counter[tuple[int, str]] = Counter()
        if rank == 0:
            self._series["planned_steps"].set(horizon)

    def logged(self, values: Mapping[str, float]) -> None:
        """Metrics that rank 0 logs at a step."""
        count = f"{values[metrics.COUNT]:g}" if metrics.COUNT in values else "0"
        if metrics.LOSS in values:
            self._series["loss_nats"].set(values[metrics.LOSS], {"count": count})
            self._series["gradient_norm"].set(values[metrics.GRAD_NORM])
            self._series["step_seconds"].observe(values[metrics.STEP_SECONDS], {"count": count})
        for count, quality in metrics.validation_curve(values).items():
            self._series["validation_quality_ratio"].set(quality, {"count": str(count)})

    def stepped(self, step: int, skipped: int, ledger: Ledger) -> None:
        """An optimizer step is done; the ledger is the run's whole one."""
        self._series["done_steps"].set(step, {"rank": self._rank})
        if self._rank != "0":
            return
        self._series["skipped_batches"].set(skipped)
        now = Counter({(count, name): getattr(tally, name) for count, tally in ledger.counts.items() for name in _SUMS})
        for (count, name), value in (now - self._before).items():
            self._series[name].inc(value, {"count": str(count)})
        self._before = now

    def close(self) -> None:
        """No longer say what was said last."""
        self._closed.set()

    def _keep(self) -> None:
        while not self._closed.wait(KEEP_S):
            _repeat(self._series)

    def committed(self, step: int) -> None:
        """A checkpoint is on disk."""
        self._series["checkpoint_steps"].set(step)
        self._series["checkpoint_timestamp_seconds"].set(time.time())


class SearchGauges:
    """Series of a search's driver."""

    def __init__(self, run: str, trials: int, budget_flops: float) -> None:
        self._series = _made(SEARCH, "tokendial_search_", {"run": run})
        self._series["planned_trials"].set(trials)
        self._series["budget_flops"].set(budget_flops)

    def trials(self, book: Book) -> None:
        """Where the trials of a search stand: how they ended, what they spent, and the best so far."""
        ended = [outcome for _, outcome in book.ended]
        states = Counter(outcome.status.lower() for outcome in ended)
        for state in ("finished", "pruned", "failed"):
            self._series["trials"].set(states[state], {"state": state})
        self._series["trials"].set(len(book.trials) - len(ended), {"state": "running"})
        self._series["spent_flops"].set(sum(outcome.flops for outcome in ended))
        finished = [outcome for outcome in ended if outcome.status == "FINISHED" and "autc" in outcome.values]
        if finished:
            best = max(finished, key=lambda outcome: outcome.values["autc"])
            self._series["best_autc_ratio"].set(best.values["autc"])
            for count, quality in best.curve.items():
                self._series["best_quality_ratio"].set(quality, {"count": str(count)})
        _repeat(self._series)


class _Gauge:
    """A gauge that knows what it was set to: Ray forgets a value once it has been read."""

    def __init__(self, gauge: ray_metrics.Gauge) -> None:
        self._gauge = gauge
        self._values: dict[tuple[tuple[str, str], ...], float] = {}

    def set(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        self._values[tuple((tags or {}).items())] = value
        self._gauge.set(value, dict(tags or {}))

    def repeat(self) -> None:
        for tags, value in list(self._values.items()):
            self._gauge.set(value, dict(tags))


def _repeat(series: Mapping[str, Any]) -> None:
    for metric in series.values():
        if isinstance(metric, _Gauge):
            metric.repeat()


def _made(wanted: Sequence[Series], prefix: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """Ray's metric of each series, by its name behind the prefix, with the tags that all values share."""
    made: dict[str, Any] = {}
    for series in wanted:
        match series.kind:
            case "counter":
                metric = ray_metrics.Counter(series.name, series.help, series.labels)
            case "gauge":
                metric = ray_metrics.Gauge(series.name, series.help, series.labels)
            case "histogram":
                metric = ray_metrics.Histogram(series.name, series.help, list(series.buckets), series.labels)
        metric.set_default_tags(dict(tags))
        made[series.name.removeprefix(prefix)] = _Gauge(metric) if isinstance(metric, ray_metrics.Gauge) else metric
    return made

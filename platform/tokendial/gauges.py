"""What a run tells Prometheus while it goes on, through Ray's metrics agent of each node; names are in `metrics`.

Only this module imports ray.util.metrics. Outside a Ray process nothing is sent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ray.util import metrics as ray_metrics

from tokendial import metrics
from tokendial.ledger import Ledger
from tokendial.metrics import SEARCH, TRAIN, Series

_SUMS = ("visual_tokens", "text_tokens", "examples", "flops")


class TrainingGauges:
    """Series of one training worker; rank 0 speaks for the run. A resumed run's counters begin with what it had."""

    def __init__(self, run: str, rank: int, horizon: int) -> None:
        self._series = _made(TRAIN, "tokendial_train_", {"run": run})
        self._rank = str(rank)
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
        prefix = metrics.validation_quality(0).removesuffix("0")
        for name, value in values.items():
            if name.startswith(prefix):
                self._series["validation_quality_ratio"].set(value, {"count": name.removeprefix(prefix)})

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

    def trials(self, states: Mapping[str, int]) -> None:
        """How many trials are in each state."""
        for state, number in states.items():
            self._series["trials"].set(number, {"state": state})

    def spent(self, flops: float) -> None:
        self._series["spent_flops"].set(flops)

    def best(self, autc: float, curve: Mapping[int, float]) -> None:
        """The best trial so far: its area and its quality by count."""
        self._series["best_autc_ratio"].set(autc)
        for count, quality in curve.items():
            self._series["best_quality_ratio"].set(quality, {"count": str(count)})


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
        made[series.name.removeprefix(prefix)] = metric
    return made

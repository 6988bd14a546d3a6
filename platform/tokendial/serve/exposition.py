"""The endpoint's Prometheus series, made from the one list of names in `metrics.SERVE`."""

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tokendial.metrics import SERVE
from tokendial.serve.backend import Served
from tokendial.serve.request import Done

PREFIX = "tokendial_serve_"
OUTCOMES = ("promoted", "refused")


class Exposition:
    """Counts answers as they end; engines' gauges are brought up to date when somebody reads them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._process = uuid.uuid4().hex[:8]
        self._series: dict[str, Any] = {}
        for series in SERVE:
            kind = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}[series.kind]
            more: dict[str, Any] = {"buckets": series.buckets} if series.buckets else {}
            labels = series.labels if series.kind == "gauge" else (*series.labels, "process")
            made = kind(series.name, series.help, labels, registry=self._registry, **more)
            self._series[series.name.removeprefix(PREFIX)] = made
        for outcome in OUTCOMES:
            # What begins at 1 has not grown, as Prometheus sees it.
            self._own("model_changes", outcome)

    def status(self, model: str, key: str, code: int) -> None:
        """An answer was sent."""
        self._own("requests", model, key, str(code)).inc()

    def refused(self, cause: str) -> None:
        """A request was turned away."""
        self._own("refusals", cause).inc()

    def retried(self, model: str) -> None:
        """A replica died and its answer was begun again."""
        self._own("retries", model).inc()

    def first_token(self, model: str, seconds: float) -> None:
        """A stream's first piece was sent."""
        self._own("first_token_seconds", model).observe(seconds)

    def answered(self, model: str, key: str, done: Done, seconds: float) -> None:
        """An answer came to its end."""
        counts = set(done.visual_tokens)
        count = "mixed" if len(counts) > 1 else str(next(iter(counts), 0))
        self._own("latency_seconds", model, count).observe(seconds)
        for stage, latency_ms in done.latency_ms.items():
            if stage != "total":
                self._own("stage_seconds", model, stage).observe(latency_ms / 1e3)
        for used in done.visual_tokens:
            self._own("images", model, str(used), done.reason).inc()
        self._own("visual_tokens", model, key).inc(sum(done.visual_tokens))
        self._own("wanted_tokens", model, key).inc(sum(done.wanted_tokens))
        self._own("completion_tokens", model, key).inc(done.completion_tokens)
        if done.expected_quality is not None:
            self._own("expected_quality_ratio", model).observe(done.expected_quality)

    def changed(self, outcome: str) -> None:
        """A version took traffic, or was refused before it had any."""
        self._own("model_changes", outcome).inc()

    def text(self, served: Served, replicas: Mapping[str, Mapping[str, Any]]) -> bytes:
        """Everything, in Prometheus' text format."""
        self._clear("model_info", "replicas", "queued_requests", "running_requests")
        self._clear("inflight_wanted_tokens", "demand_ratio")
        self._clear("governor_level_steps", "governor_cap_tokens", "governor_lift_ratio", "governor_barred_tokens")
        self._clear("agreement_ratio", "measured_latency_seconds", "start_seconds")
        self._series["model_info"].labels(served.name, served.version).set(1)
        # From 0 on, as above.
        self._own("retries", served.name)
        self._series["replicas"].labels(served.name).set(len(replicas))
        for replica, load in replicas.items():
            self._engine(served, replica, load)
        return generate_latest(self._registry)

    def _own(self, name: str, *labels: str) -> Any:
        return self._series[name].labels(*labels, self._process)

    def _engine(self, served: Served, replica: str, load: Mapping[str, Any]) -> None:
        model = served.name
        plain = {
            "queued_requests": load["queued"],
            "running_requests": load["running"],
            "inflight_wanted_tokens": load["wanted_tokens"],
            "demand_ratio": load["demand_share"],
            "governor_level_steps": load["level"],
            "governor_cap_tokens": load["cap"] or served.counts[-1],
            "governor_lift_ratio": load["lift"],
        }
        for name, value in plain.items():
            self._series[name].labels(model, replica).set(value)
        self._by_count("governor_barred_tokens", model, replica, ((count, count) for count in load["barred"]))
        self._by_count("agreement_ratio", model, replica, load["agreement"].items())
        latencies = ((count, latency_ms / 1e3) for count, latency_ms in load["latency_ms"].items())
        self._by_count("measured_latency_seconds", model, replica, latencies)
        for part, seconds in load["start_s"].items():
            self._series["start_seconds"].labels(model, replica, part).set(seconds)

    def _by_count(self, name: str, model: str, replica: str, values: Iterable[tuple[int | str, float]]) -> None:
        for count, value in values:
            self._series[name].labels(model, replica, str(count)).set(value)

    def _clear(self, *names: str) -> None:
        for name in names:
            self._series[name].clear()

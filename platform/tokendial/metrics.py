"""The one naming scheme: MLflow metrics by function or constant, Prometheus metrics with unit and help text.

MLflow names are paths, `<part>/<noun>[/k<count>]`; a Prometheus name is `tokendial_<part>_<noun>_<unit>` (Ray puts
`ray_` in front of what it exports for a worker). Dashboards are checked against `PROMETHEUS`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from tokendial.curve import CurvePoint, autc
from tokendial.ledger import Ledger, Tally

LOSS = "train/loss"
LEARNING_RATE = "train/lr"
GRAD_NORM = "train/grad_norm"
COUNT = "train/count"
TOKENS_PER_SECOND = "train/tokens_per_second"
STEP_SECONDS = "train/step_seconds"
TRACKING_SECONDS = "train/tracking_seconds"
FLOPS = "train/flops"
SKIPPED_STEPS = "train/skipped_steps"
CHECKPOINT_SECONDS = "checkpoint/seconds"
VALIDATION_AUTC = "validation/autc"
CURVE_QUALITY = "curve/quality"
CURVE_LOW = "curve/quality_low"
CURVE_HIGH = "curve/quality_high"
AUTC = "autc"

# What MLflow and a Prometheus label both take without escaping.
NAME = re.compile(r"[a-z][a-z0-9_]*(/[A-Za-z0-9_.-]+)*")
_PROMETHEUS_NAME = re.compile(r"tokendial_[a-z]+(_[a-z]+)*_(total|seconds|bytes|ratio|hertz|flops|nats)")


def stage_loss(stage: str) -> str:
    """Training loss of one stage of a staged recipe, nats per answer token."""
    return f"train/loss/{stage}"


def count_loss(count: int) -> str:
    """Training loss of the passes at one count, nats per answer token."""
    return f"train/loss/k{count}"


def validation_quality(count: int) -> str:
    """Quality on the validation split at one count, step = optimizer step."""
    return f"validation/quality/k{count}"


def quality(count: int) -> str:
    """Final quality at one count as a metric of its own, so that tables of runs have a column per count."""
    return f"quality/k{count}"


def group_quality(group: str, count: int) -> str:
    """Final quality of one question type at one count."""
    return f"quality_{_slug(group)}/k{count}"


def measure(name: str, count: int) -> str:
    """Final secondary measure of the workload at one count."""
    return f"measure_{_slug(name)}/k{count}"


def regret(count: int) -> str:
    """Twin's quality minus the flexible model's at the twin's count."""
    return f"regret/k{count}"


def _slug(text: str) -> str:
    return re.sub("[^a-z0-9_]", "_", text.lower())


def ledger_metrics(ledger: Ledger) -> dict[str, float]:
    """Every sum of a ledger: `ledger/visual_tokens/k64`, and `ledger/visual_tokens` over all counts."""
    values: dict[str, float] = {}
    for label, tally in {**{f"/k{c}": t for c, t in ledger.counts.items()}, "": ledger.total}.items():
        values |= {f"ledger/{entry.name}{label}": float(getattr(tally, entry.name)) for entry in fields(Tally)}
    values |= {"ledger/cpu_hours": ledger.cpu_hours, "ledger/gpu_hours": ledger.gpu_hours}
    return values if ledger.money is None else {**values, "ledger/money": ledger.money}


def curve_metrics(curve: Mapping[int, CurvePoint], step: int) -> list[tuple[int, dict[str, float]]]:
    """The final curve as (step, values): step = count for `curve/…`; AUTC and a column per count at `step`."""
    rows = [
        (count, {CURVE_QUALITY: point.quality, CURVE_LOW: point.ci[0], CURVE_HIGH: point.ci[1]})
        for count, point in sorted(curve.items())
    ]
    columns = {quality(count): point.quality for count, point in sorted(curve.items())}
    return [*rows, (step, {**columns, AUTC: autc(curve)})]


@dataclass(frozen=True)
class PrometheusMetric:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not _PROMETHEUS_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not tokendial_<part>_<noun>_<unit> with a known unit")
        counted, bounded = self.name.endswith("_total"), bool(self.boundaries)
        if counted != (self.kind == "counter") or bounded != (self.kind == "histogram"):
            raise ValueError(f"{self.name!r} does not fit a {self.kind}")


TRAIN_STEP_SECONDS = PrometheusMetric(
    "tokendial_train_step_seconds",
    "histogram",
    "Wall seconds of one optimizer step, by token count (`mixed` where a step ran several)",
    ("run", "count"),
    (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
)
TRAIN_TOKENS = PrometheusMetric(
    "tokendial_train_tokens_total",
    "counter",
    "Tokens trained on; kind is visual, text or pad",
    ("run", "count", "kind"),
)
TRAIN_FLOPS = PrometheusMetric("tokendial_train_flops_total", "counter", "FLOPs as executed", ("run", "count"))
TRAIN_STEPS = PrometheusMetric("tokendial_train_steps_total", "counter", "Optimizer steps taken", ("run",))
TRAIN_LOSS = PrometheusMetric("tokendial_train_loss_nats", "gauge", "Loss per answer token of the last step", ("run",))
TRAIN_CHECKPOINT_SECONDS = PrometheusMetric(
    "tokendial_train_checkpoint_seconds",
    "histogram",
    "Wall seconds the training thread spent on one checkpoint",
    ("run",),
    (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
)
TRAIN_PEAK_MEMORY = PrometheusMetric(
    "tokendial_train_peak_memory_bytes", "gauge", "Peak memory of the training process", ("run", "rank")
)
TRACKING_BACKLOG = PrometheusMetric(
    "tokendial_tracking_backlog_bytes", "gauge", "Metric records kept beside the run and not yet at MLflow", ("run",)
)
TRACKING_DROPPED = PrometheusMetric(
    "tokendial_tracking_dropped_total", "counter", "Metric records dropped because the backlog was full", ("run",)
)

PROMETHEUS: Mapping[str, PrometheusMetric] = {
    metric.name: metric
    for metric in (
        TRAIN_STEP_SECONDS,
        TRAIN_TOKENS,
        TRAIN_FLOPS,
        TRAIN_STEPS,
        TRAIN_LOSS,
        TRAIN_CHECKPOINT_SECONDS,
        TRAIN_PEAK_MEMORY,
        TRACKING_BACKLOG,
        TRACKING_DROPPED,
    )
}

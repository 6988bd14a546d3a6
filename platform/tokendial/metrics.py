"""The one naming scheme of what is measured: MLflow paths `<part>/<noun>[/k<count>]`, and Prometheus series."""

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
CURVE_QUALITY = "curve/quality"
CURVE_LOW = "curve/quality_low"
CURVE_HIGH = "curve/quality_high"
AUTC = "autc"
SEARCH_BEST = "search/best"

# What MLflow takes without escaping.
NAME = re.compile(r"[a-z][a-z0-9_]*(/[A-Za-z0-9_.-]+)*")


def count_loss(count: int) -> str:
    """Training loss of the passes at one count, nats per answer token."""
    return f"train/loss/k{count}"


def validation_quality(count: int) -> str:
    """Quality on the validation split at one count, step = optimizer step."""
    return f"validation/quality/k{count}"


def validation_curve(values: Mapping[str, float]) -> dict[int, float]:
    """Quality by count of the validation metrics among `values`; empty where there are none."""
    prefix = validation_quality(0).removesuffix("0")
    return {int(name.removeprefix(prefix)): value for name, value in values.items() if name.startswith(prefix)}


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


def search_objective(name: str) -> str:
    """An objective of a search's trials, step = trial."""
    return f"search/{name}"


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
    """The final curve as (step, values): step = count for `curve/…`; AUTC and a column per count at `step`.

    The columns have four decimals, which is what a table of runs has room for.
    """
    rows = [
        (count, {CURVE_QUALITY: point.quality, CURVE_LOW: point.ci[0], CURVE_HIGH: point.ci[1]})
        for count, point in sorted(curve.items())
    ]
    columns = {quality(count): round(point.quality, 4) for count, point in sorted(curve.items())}
    return [*rows, (step, {**columns, AUTC: round(autc(curve), 4)})]


@dataclass(frozen=True)
class Series:
    """A Prometheus series `tokendial_<part>_<noun>_<unit>`; a counter is exposed with `_total` behind its name."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


SECONDS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.4, 0.7, 1.0, 2.0, 4.0, 10.0, 30.0)
TENTHS = tuple(tenth / 10 for tenth in range(1, 11))

# `model` is the served name, `key` the name of an API key ("" without keys), `count` the visual tokens of one image,
# `replica` the engine's replica. Gauges are read from engines. Counters and histograms are an endpoint process's own,
# and have its label `process` too: every node's proxy shows the page of whichever process it reaches.
SERVE: tuple[Series, ...] = (
    Series(
        "tokendial_serve_requests",
        "counter",
        "Answers by HTTP status; a stream by how it ended: 200, 499 its client left, 500 it failed, 503 it was lost.",
        ("model", "key", "code"),
    ),
    Series(
        "tokendial_serve_refusals",
        "counter",
        "Requests turned away: busy (no room), target (no hope of meeting it), expired (not begun in time), rate, key, "
        "input, size, slow.",
        ("cause",),
    ),
    Series("tokendial_serve_latency_seconds", "histogram", "Whole answers, by count.", ("model", "count"), SECONDS),
    Series("tokendial_serve_first_token_seconds", "histogram", "Time to the first piece.", ("model",), SECONDS),
    Series("tokendial_serve_stage_seconds", "histogram", "Parts of an answer.", ("model", "stage"), SECONDS),
    Series("tokendial_serve_images", "counter", "Images answered, by count and reason.", ("model", "count", "reason")),
    Series("tokendial_serve_visual_tokens", "counter", "Visual tokens used.", ("model", "key")),
    Series("tokendial_serve_wanted_tokens", "counter", "Visual tokens had nothing been bent.", ("model", "key")),
    Series("tokendial_serve_completion_tokens", "counter", "Tokens generated.", ("model", "key")),
    Series("tokendial_serve_expected_quality_ratio", "histogram", "Expected quality of answers.", ("model",), TENTHS),
    Series("tokendial_serve_retries", "counter", "Answers begun again because a replica died.", ("model",)),
    Series(
        "tokendial_serve_model_changes", "counter", "Versions promoted, or refused before any traffic.", ("outcome",)
    ),
    Series("tokendial_serve_model_info", "gauge", "1 for the version that takes traffic.", ("model", "version")),
    Series("tokendial_serve_replicas", "gauge", "Engine replicas that answer.", ("model",)),
    Series("tokendial_serve_queued_requests", "gauge", "Waiting in an engine.", ("model", "replica")),
    Series("tokendial_serve_running_requests", "gauge", "Holding a slot of an engine.", ("model", "replica")),
    Series(
        "tokendial_serve_inflight_wanted_tokens",
        "gauge",
        "Visual tokens wanted at full quality in flight.",
        ("model", "replica"),
    ),
    Series(
        "tokendial_serve_demand_ratio",
        "gauge",
        "Share of a replica's time that the arrivals of the last second want at full quality, whether or not they met.",
        ("model", "replica"),
    ),
    Series(
        "tokendial_serve_governor_level_steps",
        "gauge",
        "Rungs the governor is below the largest.",
        ("model", "replica"),
    ),
    Series(
        "tokendial_serve_governor_cap_tokens",
        "gauge",
        "The count that requests which may be bent are held to.",
        ("model", "replica"),
    ),
    Series(
        "tokendial_serve_governor_lift_ratio",
        "gauge",
        "Share of those that is held to the rung above instead.",
        ("model", "replica"),
    ),
    Series(
        "tokendial_serve_governor_barred_tokens",
        "gauge",
        "Counts that are not bent to, as their answers disagreed.",
        ("model", "replica", "count"),
    ),
    Series(
        "tokendial_serve_agreement_ratio",
        "gauge",
        "Bent answers equal to their replay at full count.",
        ("model", "replica", "count"),
    ),
    Series(
        "tokendial_serve_measured_latency_seconds", "gauge", "The replica's own ladder.", ("model", "replica", "count")
    ),
    Series(
        "tokendial_serve_start_seconds", "gauge", "Parts of the newest replica's start.", ("model", "replica", "part")
    ),
)

# Of training workers and of a search's driver, exposed by Ray on each node as `ray_<name>`. `run` is the run's name;
# `rank` a training worker. Rank 0 speaks for the run, and each rank of its own steps.
STEP_SECONDS_BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)

TRAIN: tuple[Series, ...] = (
    Series("tokendial_train_planned_steps", "gauge", "Optimizer steps planned.", ("run",)),
    Series("tokendial_train_done_steps", "gauge", "Optimizer steps a rank has done.", ("run", "rank")),
    Series("tokendial_train_loss_nats", "gauge", "Loss per answer token of a count's last step.", ("run", "count")),
    Series("tokendial_train_gradient_norm", "gauge", "Gradient norm of the last step, before clipping.", ("run",)),
    Series(
        "tokendial_train_step_seconds",
        "histogram",
        "Optimizer steps, by count.",
        ("run", "count"),
        STEP_SECONDS_BUCKETS,
    ),
    Series("tokendial_train_visual_tokens", "counter", "Visual tokens trained on.", ("run", "count")),
    Series("tokendial_train_text_tokens", "counter", "Text tokens trained on.", ("run", "count")),
    Series("tokendial_train_examples", "counter", "Examples trained on.", ("run", "count")),
    Series("tokendial_train_flops", "counter", "FLOPs as executed.", ("run", "count")),
    Series("tokendial_train_skipped_batches", "gauge", "Batches passed over as not finite.", ("run",)),
    Series("tokendial_train_checkpoint_steps", "gauge", "Step of the newest committed checkpoint.", ("run",)),
    Series("tokendial_train_checkpoint_timestamp_seconds", "gauge", "When it was committed.", ("run",)),
    Series("tokendial_train_validation_quality_ratio", "gauge", "Validation quality by count.", ("run", "count")),
)

SEARCH: tuple[Series, ...] = (
    Series("tokendial_search_trials", "gauge", "Trials by state: running, finished, pruned, failed.", ("run", "state")),
    Series("tokendial_search_planned_trials", "gauge", "Trials planned.", ("run",)),
    Series("tokendial_search_best_autc_ratio", "gauge", "Best area under a trial's validation curve.", ("run",)),
    Series("tokendial_search_best_quality_ratio", "gauge", "The best trial's quality by count.", ("run", "count")),
    Series("tokendial_search_spent_flops", "gauge", "FLOPs that trials have spent.", ("run",)),
    Series("tokendial_search_budget_flops", "gauge", "FLOPs that the search may spend.", ("run",)),
)

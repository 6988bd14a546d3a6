"""The one naming scheme of MLflow metrics, by function or constant: paths `<part>/<noun>[/k<count>]`."""

import re
from collections.abc import Mapping
from dataclasses import fields

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

# What MLflow takes without escaping.
NAME = re.compile(r"[a-z][a-z0-9_]*(/[A-Za-z0-9_.-]+)*")


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

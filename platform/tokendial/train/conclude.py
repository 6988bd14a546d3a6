"""What a run whose workers are done comes to: curve, cards, figures and `result.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokendial import runs
from tokendial.contracts import RunConfig
from tokendial.experiments import workload
from tokendial.failures import WorkFailed
from tokendial.ledger import Ledger
from tokendial.model_folder import ModelCard, answer_flops, write_cards
from tokendial.results import ExampleAnswers, RunResult, read_examples, write_result
from tokendial.runs import Run
from tokendial.schedule import TokenSchedule
from tokendial.scores import Scores
from tokendial.versions import versions


def conclude(
    run: Run, config: RunConfig[Any], digests: Mapping[str, str]
) -> tuple[RunResult, dict[str, Path], list[ExampleAnswers]]:
    """Curve, cards, figures and `result.json` of a run whose workers are done."""
    chosen = workload(config.workload)
    ledger = Ledger.from_json(json.loads((run.folder / "ledger.json").read_text("utf-8")))
    _refuse_untrained(config, ledger)
    scores = Scores.read(run.folder / "scores.json")
    measured = scores.measured(ledger.trained_counts)
    points = measured["curve"]
    card = ModelCard(
        workload=config.workload,
        run=run.name,
        metric=chosen.metric,
        split=scores.split,
        trained_counts=ledger.trained_counts,
        evaluated_counts=config.evaluation.counts,
        projector=config.model.projector,
        schedule=config.schedule.model_dump(mode="json"),
        commit=run.record.commit,
        autc=measured["autc"],
        data_digests=dict(digests),
        config=config.model_dump(mode="json"),
        versions=versions(),
    )
    cost = chosen.cost(config)
    _, task = chosen.load(config)
    priced = {count: answer_flops(cost, count) for count in points}
    quality = {count: point.quality for count, point in points.items()}
    task.describe(str(run.model), config, quality, priced, digests, run.record.commit)
    write_cards(run.model, card, points, priced)
    result = RunResult(
        run_id=run.record.run_id,
        name=run.name,
        status="FINISHED",
        **measured,
        metric=chosen.metric,
        workload=config.workload,
        experiment=config.experiment,
        schedule=config.schedule.preset,
        variant=runs.config_hash(config, without="seed"),
        parent=run.record.parent,
        lineage=runs.lineage(run.record.parent),
        trained_counts=ledger.trained_counts,
        seed=config.seed,
        steps=ledger.steps,
        flops=ledger.total.flops,
        seconds=ledger.wall_seconds,
        ledger=ledger.to_json(),
        model_dir=str(run.model),
        commit=run.record.commit,
    )
    # Answered by a worker, as it had the model where it was scored.
    table = run.folder / "tracking" / "examples.json"
    examples = read_examples(table) if table.is_file() else []
    figures = draw_figures(run, result, TokenSchedule(config.schedule), examples)
    result = result.model_copy(update={"figures": {name: str(path) for name, path in figures.items()}})
    write_result(run.result, result)
    return result, figures, examples


def _refuse_untrained(config: RunConfig[Any], ledger: Ledger) -> None:
    """Seconds may be over before the first step that learns to answer, which no plan of a run foresees."""
    if not ledger.trained_counts:
        stages = ", ".join(repr(stage.name) for stage in config.stages if stage.objective == "language")
        raise WorkFailed(
            f"budget.seconds {config.budget.seconds:g} was used up in step {ledger.steps}, before any of {stages}, so "
            "nothing learned to answer and there is no model; give more seconds, or other shares of stages"
        )


def draw_figures(
    run: Run, result: RunResult, schedule: TokenSchedule, examples: Sequence[ExampleAnswers]
) -> dict[str, Path]:
    """Curve (PNG and HTML), exposure of the schedule (PNG) and the table of examples (HTML)."""
    from tokendial import report

    folder = run.figures
    folder.mkdir(exist_ok=True)
    figures = {
        "curve": report.curve_png([result], folder / "curve.png"),
        "curve (html)": report.curve_html([result], folder / "curve.html"),
        "exposure": report.exposure_png(schedule, folder / "exposure.png", horizon=result.steps),
    }
    if examples:
        figures["examples"] = report.examples_html(examples, folder / "examples.html")
    return figures

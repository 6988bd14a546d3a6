"""Closing a run at the tracking server: the final curve, tables, figures, the model, and the terminal status.

What is to be told is first written to `<run>/tracking/finish.json`, then carried over by `settle`, which may be called
again at any time: each part is either the same row at the server or replaced.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, RunTag

from tokendial import metrics
from tokendial.results import ExampleAnswers, RunResult, read_examples, write_examples
from tokendial.runs import write_atomically
from tokendial.tracking.journal import Journal
from tokendial.tracking.logs import log_logs
from tokendial.tracking.opening import FOLDER, ensure_open, read_document
from tokendial.tracking.server import AWAY, connect, logger, patient, probe, reason
from tokendial.tracking.tables import curve_markdown, curve_table, examples_table, matrix_table
from tokendial.tracking.uri import redact
from tokendial.tracking.writer import send


def finish(
    uri: str,
    run_dir: Path,
    result: RunResult,
    figures: Mapping[str, Path] | None = None,
    examples: Sequence[ExampleAnswers] = (),
) -> bool:
    """Log what a run ended with and set its terminal status; False: the server is away and `settle` has to follow.

    See `note`.
    """
    note(run_dir, result, figures, examples)
    return settle(uri, run_dir)


def note(
    run_dir: Path,
    result: RunResult,
    figures: Mapping[str, Path] | None = None,
    examples: Sequence[ExampleAnswers] = (),
) -> None:
    """Write down what a run ended with, for `settle` to tell.

    The model folder is `result.model_dir`, `figures` are files by name. No writer may be open on the run any more.
    Raises ValueError where `result.status` is not terminal.
    """
    if result.status == "RUNNING":
        raise ValueError("finish needs a terminal status: FINISHED, FAILED or KILLED; got RUNNING")
    folder = run_dir / FOLDER
    if examples:
        write_examples(folder / "examples.json", examples)
    document = {
        "time_ms": time.time_ns() // 1_000_000,
        "result": result.model_dump(mode="json"),
        "figures": {name: str(path.resolve()) for name, path in (figures or {}).items()},
    }
    write_atomically(folder / "finish.json", json.dumps(document))


def settle(uri: str, run_dir: Path) -> bool:
    """Tell the server everything about a finished run that it was not told; True where nothing is left to tell."""
    folder = run_dir / FOLDER
    document = read_document(folder / "finish.json")
    if not document:
        return True
    try:
        probe(uri)
        client = connect(uri)
        run_id = ensure_open(client, uri, folder)
        for path in sorted(folder.glob("*.jsonl")):
            send(client, run_id, Journal(path))
        with patient():
            _close(client, run_id, folder, document)
    except AWAY as error:
        logger.warning("%s: the run's records stay in %s: %s", redact(uri), folder, reason(error, uri))
        return False
    (folder / "finish.json").replace(folder / "finished.json")
    return True


def _close(client: MlflowClient, run_id: str, folder: Path, document: Mapping[str, Any]) -> None:
    result, time_ms = RunResult.model_validate(document["result"]), document["time_ms"]
    for name, path in sorted(document["figures"].items()):
        client.log_artifact(run_id, path, f"figures/{name}" if Path(path).is_dir() else "figures")
    _log_tables(client, run_id, folder, result)
    model_id = _log_model(client, run_id, result) if result.model_dir and result.curve else None
    _log_values(client, run_id, result, time_ms, model_id)
    client.log_dict(run_id, {**document["result"], "run_id": run_id}, "result.json")
    log_logs(client, run_id, folder.parent / "logs")
    client.set_terminated(run_id, result.status, time_ms)


def _log_values(client: MlflowClient, run_id: str, result: RunResult, time_ms: int, model_id: str | None) -> None:
    """The final numbers: the curve once, the others once per state; tags of digests tell what the run has."""
    known = client.get_run(run_id).data.tags
    for part, rows in _rows(result).items():
        tag, digest = f"tokendial.{part}", hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
        if not rows or known.get(tag) == digest or (part == "curve" and tag in known):
            continue
        model = model_id if part == "curve" else None
        values = [
            Metric(name, value, time_ms, step, model_id=model, run_id=run_id)
            for step, line in rows
            for name, value in line.items()
        ]
        for start in range(0, len(values), 1000):
            client.log_batch(run_id, metrics=values[start : start + 1000])
        client.set_tag(run_id, tag, digest)
    tags = [RunTag("mlflow.note.content", curve_markdown(result))] if result.curve else []
    tags += [RunTag("error", result.error[:1000])] if result.error else []
    client.log_batch(run_id, tags=tags)


def _rows(result: RunResult) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """(step, values) of each part of a result."""
    details = {
        name(label, count): value
        for name, table in ((metrics.group_quality, result.groups), (metrics.measure, result.extras))
        for label, line in sorted(table.items())
        for count, value in sorted(line.items())
    }
    return {
        "curve": [*metrics.curve_metrics(result.curve, result.steps), (result.steps, details)] if result.curve else [],
        "regret": [(count, {metrics.regret(count): gap.mean}) for count, gap in sorted(result.regret.items())],
        "ledger": [(result.steps, metrics.ledger_metrics(result.spent))] if result.spent else [],
    }


def _log_tables(client: MlflowClient, run_id: str, folder: Path, result: RunResult) -> None:
    """Tables in the form that MLflow's table view reads; unlike `log_table`, logging one again replaces it."""
    tables: dict[str, Mapping[str, Any]] = {}
    if result.curve:
        tables["tables/curve.json"] = curve_table(result)
    if result.matrix:
        tables["tables/matrix.json"] = matrix_table(result.matrix)
    if (folder / "examples.json").exists():
        examples = read_examples(folder / "examples.json")
        tables["tables/examples.json"] = examples_table(examples)
        _log_images(client, run_id, examples)
    for path, table in tables.items():
        client.log_text(run_id, json.dumps(table, ensure_ascii=False), path)
    if tables:
        listed = [{"path": path, "type": "table"} for path in tables]
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(listed))


def _log_images(client: MlflowClient, run_id: str, examples: Sequence[ExampleAnswers]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        for index, example in enumerate(examples):
            Path(temporary, f"{index}.png").write_bytes(example.image_png)
        client.log_artifacts(run_id, temporary, "tables/images")


def _log_model(client: MlflowClient, run_id: str, result: RunResult) -> str:
    """The exported folder as a LoggedModel of the run; the run has one, found again by its source."""
    assert result.model_dir is not None
    experiment_id = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", max_results=1)
    if found and found[0].status == "READY":
        return found[0].model_id
    model = found[0] if found else _create_model(client, experiment_id, run_id, result)
    client.log_model_artifacts(model.model_id, result.model_dir)
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, result.steps)])
    return model.model_id


def _create_model(client: MlflowClient, experiment_id: str, run_id: str, result: RunResult) -> Any:
    return client.create_logged_model(
        experiment_id,
        name=re.sub("[^A-Za-z0-9_-]", "-", result.workload or result.name),
        source_run_id=run_id,
        params={"counts": ",".join(map(str, result.trained_counts)), "schedule": result.schedule},
        tags={"metric": result.metric, "split": result.split, "run": result.name},
        model_type="vision-language",
    )

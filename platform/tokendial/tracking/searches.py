"""A search at the tracking server: one parent run with space, budget and result, and every trial's run as its child."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from tokendial import metrics
from tokendial.runs import Run, write_atomically
from tokendial.search.plan import SearchPlan
from tokendial.search.trials import Book, Outcome, Trial
from tokendial.tracking.journal import linked_id
from tokendial.tracking.logs import log_logs
from tokendial.tracking.opening import FOLDER, ensure_open, flatten, read_document
from tokendial.tracking.server import AWAY, connect, logger, patient, probe, reason
from tokendial.tracking.uri import redact
from tokendial.train.driver import settle

_BATCH = 1000
_STATUS = {"FINISHED": "FINISHED", "PRUNED": "KILLED", "FAILED": "FAILED"}


class SearchRecord:
    """The parent run of a search. A server that is away costs a warning; what it missed `settle` tells it."""

    def __init__(self, uri: str, folder: Path, plan: SearchPlan) -> None:
        self._uri, self._folder, self._plan = uri, folder, plan
        self._run_id: str | None = None

    def open(self) -> None:
        """Open the parent run, the same one when the search is continued."""
        plan, folder, public = self._plan, self._folder / FOLDER, _public(self._plan)
        folder.mkdir(exist_ok=True)
        document = {
            "key": read_document(folder / "opening.json").get("key") or uuid.uuid4().hex,
            "name": plan.name,
            "experiment": plan.base["tracking"]["experiment"] or plan.experiment,
            "params": flatten({name: value for name, value in public.items() if name in _PARAMS}),
            "tags": {
                "mlflow.user": plan.user,
                "mlflow.source.git.commit": plan.commit,
                "mlflow.source.name": f"tokendial search {plan.experiment}",
                "mlflow.source.type": "JOB",
                "search.trials": str(plan.trials),
                "search.flops_per_trial": f"{plan.flops:.6g}",
            },
            "datasets": [],
            "config": public,
            "diff": "",
        }
        write_atomically(folder / "opening.json", json.dumps(document))
        (folder / "finish.json").unlink(missing_ok=True)
        self._reach(self._open)

    def told(self, number: int, outcome: Outcome) -> None:
        """Link a trial that has ended to the parent, and log its worth there at step = trial."""
        self._reach(lambda client: self._told(client, number, outcome))

    def close(self, status: str, failure: str | None) -> None:
        """Link every trial, log figures, result and the driver's log, and give the parent its terminal status.

        A parent that was never opened has nothing to close.
        """
        if not (self._folder / FOLDER / "opening.json").exists():
            return
        document = {"status": status, "failure": failure}
        write_atomically(self._folder / FOLDER / "finish.json", json.dumps(document))
        self.settle()

    def settle(self) -> None:
        """Tell the server how the search ended, where it was not told."""
        document = read_document(self._folder / FOLDER / "finish.json")
        self._reach(lambda client: self._close(client, document["status"], document["failure"]))

    def _open(self, client: MlflowClient) -> None:
        self._run_id = ensure_open(client, self._uri, self._folder / FOLDER)

    def _told(self, client: MlflowClient, number: int, outcome: Outcome) -> None:
        if self._run_id is None:
            self._open(client)
        book = Book(self._folder / "trials.jsonl")
        self._link(client, book.trials[number], outcome)
        # What a trial costs depends on the best of all, which may be still to come.
        self._log(client, [row for row in self._rows(book, {}) if row.step == number])

    def _rows(self, book: Book, worths: Mapping[int, Mapping[str, float]]) -> list[Metric]:
        """What each trial is worth at step = trial, and the best so far: of the ledger, so the same rows each time."""
        rows, best = [], -math.inf
        for trial, outcome in book.ended:
            values = worths.get(trial.number, outcome.values)
            named = {metrics.search_objective(name): value for name, value in values.items()}
            if outcome.status == "FINISHED":
                best = max(best, values[self._plan.objectives[0]])
                named[metrics.SEARCH_BEST] = best
            rows += [Metric(name, value, 0, trial.number) for name, value in named.items()]
        return rows

    def _log(self, client: MlflowClient, rows: Sequence[Metric]) -> None:
        for start in range(0, len(rows), _BATCH):
            client.log_batch(str(self._run_id), metrics=rows[start : start + _BATCH])

    def _link(self, client: MlflowClient, trial: Trial, outcome: Outcome) -> None:
        run_id = linked_id(self._uri, self._folder.parent / trial.run / FOLDER)
        if run_id is None:
            return
        tags = {
            "mlflow.parentRunId": str(self._run_id),
            "search": self._plan.name,
            "search.trial": str(trial.number),
            "search.status": outcome.status,
            **({"search.cause": outcome.cause} if outcome.cause else {}),
        }
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, _STATUS[outcome.status])

    def _close(self, client: MlflowClient, status: str, failure: str | None) -> None:
        self._run_id = run_id = ensure_open(client, self._uri, self._folder / FOLDER)
        book, home = Book(self._folder / "trials.jsonl"), self._folder.parent
        folders = [*(home / trial.run for trial, _ in book.ended), *home.glob(f"{self._plan.name}.tower-*")]
        # No other command would ever tell of them.
        settled = [settle(Run(folder)) for folder in folders if (folder / "run.json").exists()]
        for trial, outcome in book.ended:
            self._link(client, trial, outcome)
        self._log(client, self._rows(book, book.worths(self._plan.objectives)))
        with patient():
            for name in ("result.json", "report.html", "trials.jsonl"):
                if (self._folder / name).exists():
                    client.log_artifact(run_id, str(self._folder / name))
            log_logs(client, run_id, self._folder / "logs")
            for path in sorted((self._folder / "figures").glob("*.png")):
                client.log_artifact(run_id, str(path), "figures")
        if failure:
            client.set_tag(run_id, "error", failure[:1000])
        client.set_terminated(run_id, status)
        if all(settled):
            (self._folder / FOLDER / "finish.json").unlink()

    def _reach(self, act: Callable[[MlflowClient], None]) -> None:
        try:
            probe(self._uri)
            act(connect(self._uri))
        except AWAY as error:
            logger.warning(
                "%s: the search is kept in %s: %s", redact(self._uri), self._folder, reason(error, self._uri)
            )


_PARAMS = {"experiment", "overrides", "space", "algorithm", "objectives", "seed", "allowance", "shares_tower"}


def _public(plan: SearchPlan) -> dict[str, Any]:
    """The plan with the tracking address free of secrets."""
    document = plan.model_dump(mode="json")
    address = "tracking.uri="
    document["overrides"] = [
        address + redact(line.removeprefix(address)) if line.startswith(address) else line for line in plan.overrides
    ]
    if uri := plan.base["tracking"]["uri"]:
        document["base"]["tracking"]["uri"] = redact(uri)
    return document

"""Where runs and searches stand: those of the runs folder here, and the jobs of a cluster, in the same words."""

from __future__ import annotations

import json
import time
from collections import deque
from typing import Any, NamedTuple

from tokendial import metrics, runs
from tokendial.experiments import ConfigError
from tokendial.jobs.cluster import Cluster, Unreachable
from tokendial.jobs.sent import ACTIVE, RUN, USER, about, find
from tokendial.progress import read_line
from tokendial.runs import Run
from tokendial.search.found import read_plan
from tokendial.search.state import State, find_work, list_searches
from tokendial.search.trials import Book

TAIL_LINES = 200
WORDS = {"PENDING": "PENDING", "RUNNING": "RUNNING", "SUCCEEDED": "FINISHED", "FAILED": "FAILED", "STOPPED": "KILLED"}


class Standing(NamedTuple):
    """One run, or a search, whose steps are its trials.

    `place` is `here` or a cluster's address, `age_s` the seconds since it was started or submitted.
    """

    run: str
    place: str
    status: str
    stage: str = ""
    step: int = 0
    total: int = 0
    detail: str = ""
    user: str = ""
    age_s: float = 0.0
    error: str | None = None


def standings(address: str | None = None) -> list[Standing]:
    """Every run and search here and every job of the cluster at `address`, oldest first."""
    found = [*map(here, runs.list_runs()), *map(searched, list_searches())]
    found.sort(key=lambda standing: -standing.age_s)
    cluster = Cluster(address) if address else None
    # What has ended is told by its status alone; a question for the log of each would be one too many.
    return found + ([there(cluster, job, job["status"] in ACTIVE) for job in cluster.jobs()] if cluster else [])


def standing(run: str, address: str | None = None, asked: bool = False) -> list[Standing]:
    """A run or search by its name: here, and its job on the cluster at `address`.

    A cluster that does not answer is a line of its own where the run is known here and nobody `asked` for that cluster.
    Raises ConfigError where nobody knows the name.
    """
    try:
        kind, work = find_work(run)
        found, unknown = [searched(work) if kind == "search" else here(work)], None
    except ConfigError as error:
        found, unknown = [], error
    if address:
        try:
            cluster = Cluster(address)
            found += [there(cluster, job)] if (job := find(cluster, run)) else []
        except (Unreachable, ConfigError) as error:
            if asked or not found:
                raise
            found.append(Standing(run, address, "UNKNOWN", error=str(error)))
    if unknown and not found:
        raise unknown
    return found


def here(run: Run) -> Standing:
    """A run of the runs folder; one that says RUNNING while nobody holds it has died."""
    record = run.record
    step, detail = _last_step(run)
    status = "DIED" if record.status == "RUNNING" and run.holder() is None else record.status
    total = run.config_document()["budget"].get("horizon") or 0
    age = time.time() - record.created
    return Standing(run.name, "here", status, "", step, total, detail, record.user, age, record.error)


def searched(search: Run) -> Standing:
    """A search of the runs folder, from its plan and its ledger: trials done of those planned, and the best so far."""
    plan, book = read_plan(search.folder), Book(search.folder / "trials.jsonl")
    state, held = State.read(search.folder), search.holder() is not None
    status = "RUNNING" if held else "DIED" if state.status == "RUNNING" else state.status
    age, done = time.time() - (book.began or search.folder.stat().st_mtime), len(book.ended)
    first, error = plan.objectives[0], None if held else state.error
    worths = {trial.run: outcome.values[first] for trial, outcome in book.ended if outcome.status == "FINISHED"}
    best = max(worths, key=worths.__getitem__, default=None)
    detail = f"best {first} {worths[best]:.3f} by {best}" if best else ""
    return Standing(search.name, "here", status, "trials", done, plan.trials, detail, plan.user, age, error)


def there(cluster: Cluster, job: dict[str, Any], tail: bool = True) -> Standing:
    """A job of a cluster; with `tail` its progress is read from what its driver said last."""
    sent, status = about(job), WORDS[job["status"]]
    name = sent.get(RUN) or job["submission_id"]
    latest: dict[str, Any] = {}
    for line in cluster.log(job, TAIL_LINES).splitlines() if tail else ():
        latest = {**(read_line(line) or latest)}
    error = str(job["message"] or "").strip().splitlines()[-1:] if status == "FAILED" else []
    age = time.time() - (job["start_time"] or 0) / 1000
    return Standing(
        name, cluster.url, status, latest.get("stage", ""), latest.get("step", 0), latest.get("total", 0),
        latest.get("detail", ""), sent.get(USER, ""), age, error[0] if error else None,
    )  # fmt: skip


def _last_step(run: Run) -> tuple[int, str]:
    """The last optimizer step in the journal and its loss."""
    journal = run.folder / "tracking" / "metrics.jsonl"
    if not journal.exists():
        return 0, ""
    with journal.open("rb") as file:
        lines = deque((line for line in file if line.endswith(b"]\n")), maxlen=1)
    if not lines:
        return 0, ""
    _, step, values = json.loads(lines[0])
    return step, f"loss {values[metrics.LOSS]:.3f}" if metrics.LOSS in values else ""

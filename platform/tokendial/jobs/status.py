"""Where runs stand: those of the runs folder here, and the jobs of a cluster, in the same words."""

from __future__ import annotations

import json
import time
from collections import deque
from typing import Any, NamedTuple

from tokendial import metrics, runs
from tokendial.experiments import ConfigError
from tokendial.jobs.cluster import Cluster
from tokendial.jobs.send import RUN
from tokendial.progress import read_line
from tokendial.runs import Run

WORDS = {"PENDING": "PENDING", "RUNNING": "RUNNING", "SUCCEEDED": "FINISHED", "FAILED": "FAILED", "STOPPED": "KILLED"}


class Standing(NamedTuple):
    """One run: `place` is `here` or a cluster's address, `age_s` the seconds since it was started or submitted."""

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


def standings(run: str | None = None, cluster: Cluster | None = None) -> list[Standing]:
    """Every run here and every job of the cluster, oldest first; or those of one run.

    Raises ConfigError where a run is asked for that nobody knows.
    """
    if run is None:
        found = [here(known) for known in runs.list_runs()]
        return found + ([there(cluster, job) for job in cluster.jobs()] if cluster else [])
    found = []
    if cluster is not None:
        jobs = [job for job in cluster.jobs() if run in ((job["metadata"] or {}).get(RUN), job["submission_id"])]
        found += [there(cluster, job) for job in jobs[-1:]]
    try:
        return [here(runs.find(run)), *found]
    except ConfigError:
        if not found:
            raise
        return found


def here(run: Run) -> Standing:
    """A run of the runs folder; one that says RUNNING while nobody holds it has died."""
    record = run.record
    step, detail = _last_step(run)
    status = "DIED" if record.status == "RUNNING" and run.holder() is None else record.status
    total = run.config_document()["budget"].get("horizon") or 0
    age = time.time() - record.created
    return Standing(run.name, "here", status, "", step, total, detail, record.user, age, record.error)


def there(cluster: Cluster, job: dict[str, Any]) -> Standing:
    """A job of a cluster, its progress read from what its driver said last."""
    about, status = job["metadata"] or {}, WORDS[job["status"]]
    name = about.get(RUN) or job["submission_id"]
    latest: dict[str, Any] = {}
    for line in cluster.logs(job["submission_id"]).splitlines()[-200:]:
        latest = {**(read_line(line) or latest)}
    error = str(job["message"] or "").strip().splitlines()[-1:] if status == "FAILED" else []
    age = time.time() - (job["start_time"] or 0) / 1000
    return Standing(
        name, cluster.url, status, latest.get("stage", ""), latest.get("step", 0), latest.get("total", 0),
        latest.get("detail", ""), about.get("user", ""), age, error[0] if error else None,
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

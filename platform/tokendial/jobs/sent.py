"""What was sent where: a run's job on a cluster by the run's name, and what is kept here of every order sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokendial import identity, runs
from tokendial.experiments import ConfigError
from tokendial.jobs.cluster import Cluster

ACTIVE = ("PENDING", "RUNNING")
RUN, USER = "tokendial_run", "user"


def about(job: dict[str, Any]) -> dict[str, str]:
    """What was sent along with a job; nothing with one that is not tokendial's."""
    return job["metadata"] or {}


def find(cluster: Cluster, run: str) -> dict[str, Any] | None:
    """The newest job of a run, named by it or by a submission id; one at work before one that is done."""
    found = [job for job in cluster.jobs() if run in (about(job).get(RUN), job["submission_id"])]
    active = [job for job in found if job["status"] in ACTIVE]
    return (active or found or [None])[-1]


def last_on(cluster: Cluster) -> str:
    """The run of the caller's own newest job; raises ConfigError where there is none."""
    me = identity.user_name()
    mine = [job for job in cluster.jobs() if about(job).get(USER) == me and RUN in about(job)]
    if not mine:
        raise ConfigError(
            f"run 'last': {me} has sent nothing to the cluster at {cluster.url}; "
            f"`tokendial status --on {cluster.url}` lists its jobs"
        )
    return about(mine[-1])[RUN]


def last_sent() -> tuple[str, float] | None:
    """The run that was sent last from here, to any cluster, and when."""
    records = [(path.stem, path.stat().st_mtime) for path in _folder().glob("*.json")]
    return max(records, key=lambda record: record[1], default=None)


def sent_to(run: str) -> str | None:
    """The cluster that a run was last sent to from here."""
    path = _record(run)
    return json.loads(path.read_text("utf-8"))["cluster"] if path.exists() else None


def remember(run: str, cluster: Cluster, submission: str) -> None:
    """Keep where a run was sent, so that its name is enough from then on."""
    path = _record(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_atomically(path, json.dumps({"cluster": cluster.url, "submission": submission}))


def _record(run: str) -> Path:
    return _folder() / f"{Path(run).name}.json"


def _folder() -> Path:
    return runs.home() / ".sent"

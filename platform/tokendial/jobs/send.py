"""Send an order as a job: the code and its files uploaded, who sent it written down, nothing of this environment."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from pathlib import Path
from typing import Any

from tokendial import identity, runs
from tokendial.environment import EVERYWHERE
from tokendial.jobs import package
from tokendial.jobs.cluster import Cluster
from tokendial.jobs.order import Order

ACTIVE = ("PENDING", "RUNNING")
RUN, DIGEST = "tokendial_run", "tokendial_order"
# Ray kills a driver that is told to stop after 3 s; ending workers and closing the MLflow run take longer.
STOP_WAIT_S = 60


def send(cluster: Cluster, order: Order) -> str:
    """Submit an order and return its submission id.

    Where the very same order is at work already, and does not ask for a new run, return that one's.
    """
    command = shlex.join(order.arguments)
    digest = hashlib.blake2b(package.archive(order.files) + command.encode(), digest_size=8).hexdigest()
    for job in cluster.jobs():
        same = "--new" not in order.arguments and (job["metadata"] or {}).get(DIGEST) == digest
        if same and job["status"] in ACTIVE:
            return job["submission_id"]
    who = identity.capture()
    files = {**order.files, identity.FILE: who.model_dump_json().encode()}
    environment = {**EVERYWHERE, identity.VARIABLE: identity.FILE, "COLUMNS": "200"}
    environment["RAY_JOB_STOP_WAIT_TIME_S"] = str(STOP_WAIT_S)
    runtime_env = {
        "working_dir": cluster.upload(package.archive(files)),
        "py_modules": [cluster.upload(package.code())],
        "env_vars": environment,
    }
    metadata = {
        RUN: order.run, DIGEST: digest, "user": who.user, "commit": who.commit,
        "uncommitted": "yes" if who.dirty else "no",
    }  # fmt: skip
    submission = cluster.submit(
        {
            "entrypoint": f"python -m tokendial {command}",
            "submission_id": f"{order.run}-{time.time_ns() // 1_000_000:x}",
            "runtime_env": runtime_env,
            "metadata": metadata,
        }
    )
    _remember(order.run, {"cluster": cluster.url, "submission": submission})
    return submission


def find(cluster: Cluster, run: str) -> dict[str, Any] | None:
    """The newest job of a run, named by it or by a submission id; one at work before one that is done."""
    found = [
        job for job in cluster.jobs() if run in ((job["metadata"] or {}).get(RUN), job["submission_id"])
    ]  # fmt: skip
    active = [job for job in found if job["status"] in ACTIVE]
    return (active or found or [None])[-1]


def sent_to(run: str) -> str | None:
    """The cluster that a run was last sent to from here."""
    path = _record(run)
    return json.loads(path.read_text("utf-8"))["cluster"] if path.exists() else None


def _remember(run: str, document: dict[str, str]) -> None:
    path = _record(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_atomically(path, json.dumps(document))


def _record(run: str) -> Path:
    return runs.home() / ".sent" / f"{Path(run).name}.json"

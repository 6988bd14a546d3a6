"""Send an order as a job: the code and its files uploaded, who sent it written down, nothing of this environment."""

from __future__ import annotations

import hashlib
import shlex
import time

from tokendial import identity
from tokendial.environment import EVERYWHERE
from tokendial.jobs import package
from tokendial.jobs.cluster import Cluster
from tokendial.jobs.order import Order
from tokendial.jobs.sent import ACTIVE, RUN, USER, about, remember

DIGEST = "tokendial_order"
# Ray kills a driver that is told to stop after 3 s; ending workers and closing the MLflow run take longer.
STOP_WAIT_S = 60


def send(cluster: Cluster, order: Order) -> str:
    """Submit an order and return its submission id.

    Where the very same order is at work already, and does not ask for a new run, return that one's.
    """
    command = shlex.join(order.arguments)
    digest = hashlib.blake2b(package.archive(order.files) + command.encode(), digest_size=8).hexdigest()
    for job in cluster.jobs():
        same = "--new" not in order.arguments and about(job).get(DIGEST) == digest
        if same and job["status"] in ACTIVE:
            remember(order.run, cluster, job["submission_id"])
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
        RUN: order.run, DIGEST: digest, USER: who.user, "commit": who.commit,
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
    remember(order.run, cluster, submission)
    return submission

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
# A cluster knows how long its pods take to start; where it does not say, the command there sets it.
PATIENCE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


def send(cluster: Cluster, order: Order) -> tuple[str, bool]:
    """Submit an order and return its submission id, and that it is new.

    Where the very same order, of the same tokendial, is at work already and does not ask for a new run, return that
    one's. Another tokendial is another order: the run itself refuses to be worked on twice.
    """
    command, code = shlex.join(order.arguments), package.code()
    what = package.archive(order.files) + code + command.encode()
    digest = hashlib.blake2b(what, digest_size=8).hexdigest()
    for job in cluster.jobs():
        same = "--new" not in order.arguments and about(job).get(DIGEST) == digest
        if same and job["status"] in ACTIVE:
            remember(order.run, cluster, job["submission_id"])
            return job["submission_id"], False
    who = identity.capture()
    files = {**order.files, identity.FILE: who.model_dump_json().encode()}
    environment = {name: value for name, value in EVERYWHERE.items() if name != PATIENCE}
    environment |= {identity.VARIABLE: identity.FILE, "COLUMNS": "200", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    runtime_env = {
        "working_dir": cluster.upload(package.archive(files)),
        "py_modules": [cluster.upload(code)],
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
    return submission, True

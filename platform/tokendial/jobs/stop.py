"""End a run, or a search, so that it can be continued: its workers first, then its driver, here or on a cluster."""

from __future__ import annotations

import os
import signal
import socket

from tokendial.experiments import ConfigError
from tokendial.jobs.cluster import Cluster
from tokendial.jobs.sent import ACTIVE, find
from tokendial.search.state import find_work


def stop(run: str, cluster: Cluster | None = None) -> str:
    """Tell a run or search to stop and return where it was told; it ends as KILLED, and its command continues it."""
    if cluster is not None:
        job = find(cluster, run)
        if job is None:
            raise ConfigError(f"run {run!r} has no job on the cluster at {cluster.url}; `tokendial status` lists them")
        if job["status"] not in ACTIVE:
            raise ConfigError(f"run {run!r} is not at work on the cluster at {cluster.url}; its job is {job['status']}")
        cluster.stop(job["submission_id"])
        return cluster.url
    kind, found = find_work(run)
    holder = found.holder()
    if holder is None:
        status = f"; its status is {found.record.status}" if kind == "run" else ""
        raise ConfigError(f"{kind} {found.name!r} is not at work{status}")
    if holder["host"] != socket.gethostname():
        raise ConfigError(
            f"{kind} {found.name!r} is at work on {holder['host']}; stop it there, or with --on its cluster"
        )
    os.kill(holder["pid"], signal.SIGTERM)
    return "here"


def works_here(run: str) -> bool:
    """Whether a living process of this machine works on a run or search of the runs folder here."""
    try:
        holder = find_work(run)[1].holder()
    except ConfigError:
        return False
    return holder is not None and holder["host"] == socket.gethostname()

"""What a run's driver and ranks said: from its folder, from the cluster, or from the tracking server afterwards."""

from __future__ import annotations

from collections.abc import Mapping

from tokendial import runs
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.jobs.cluster import Cluster, Unreachable
from tokendial.jobs.send import find, sent_to
from tokendial.tracking import resolve_uri


def read_logs(run: str, cluster: Cluster | None = None) -> Mapping[str, str]:
    """Logs by name (`driver`, `rank-0`, …); raises ConfigError where there are none.

    Asked in this order: the run's folder here, its job on the cluster, the artifacts of its MLflow run.
    """
    place = sent_to(run)
    asked: list[str] = []
    if cluster is None:
        try:
            folder = runs.find(run).folder / "logs"
            if found := {path.stem: path.read_text("utf-8", "replace") for path in sorted(folder.glob("*.log"))}:
                return found
            asked.append(f"{folder} holds none")
        except ConfigError as error:
            asked.append(str(error))
    if cluster is not None or place is not None:
        try:
            found_there = cluster or Cluster(str(place))
            job = find(found_there, run)
            if job is not None:
                return {"driver": found_there.logs(job["submission_id"])}
            asked.append(f"the cluster at {found_there.url} has no job of it")
        except (Unreachable, ConfigError) as error:
            # The token of a cluster that is gone is often gone too.
            if cluster is not None and isinstance(error, ConfigError):
                raise
            asked.append(str(error))
    uri = resolve_uri(None, runs.home())
    if uri.startswith("http"):
        from tokendial.tracking.logs import fetch_logs

        try:
            if found := fetch_logs(uri, run):
                return found
            asked.append(f"MLflow at {uri} has none")
        except WorkFailed as error:
            asked.append(str(error))
    raise ConfigError(f"run {run!r} has no logs: {'; '.join(asked)}")

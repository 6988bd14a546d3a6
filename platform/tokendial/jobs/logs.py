"""What a run's driver and ranks said, or a search's trials: from the folder, the cluster, or the tracking server."""

from __future__ import annotations

from collections.abc import Mapping

from tokendial import runs
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.jobs.cluster import Cluster
from tokendial.jobs.sent import find
from tokendial.search.state import find_work
from tokendial.search.trials import Book
from tokendial.tracking import resolve_uri


def read_logs(
    run: str, address: str | None = None, elsewhere: bool = False, rank: int | None = None
) -> Mapping[str, str]:
    """Logs by name (`driver`, `rank-0`, …), that of `rank` among them; raises ConfigError where there are none.

    Asked in this order: the run's folder here, unless it is `elsewhere`; its job on the cluster at `address`; the
    artifacts of its MLflow run. A search here has its own driver's log and those of its towers' and trials' drivers, by
    their runs.
    """
    asked: list[str] = []
    if not elsewhere:
        try:
            kind, work = find_work(run)
            if found := _of_trials(work) if kind == "search" else _of_processes(work):
                return found
            asked.append(f"{work.folder} holds none")
        except ConfigError as error:
            asked.append(str(error))
    if address is not None:
        try:
            cluster = Cluster(address)
            job = find(cluster, run)
            if job is None:
                asked.append(f"the cluster at {address} has no job of it")
            elif rank is not None:
                asked.append(f"the cluster at {address} shows its driver's log only; ranks' are in its folder there")
            elif text := cluster.log(job):
                return {"driver": text}
            else:
                asked.append(f"the cluster at {address} has no log of its job, which is {job['status']}")
        except (WorkFailed, ConfigError) as error:
            # The token of a cluster that is gone is often gone too.
            if elsewhere and isinstance(error, ConfigError):
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


def _of_processes(run: runs.Run) -> dict[str, str]:
    return {path.stem: path.read_text("utf-8", "replace") for path in sorted((run.folder / "logs").glob("*.log"))}


def _of_trials(search: runs.Run) -> dict[str, str]:
    """The logs of a search's driver and of its towers' and trials'; of a trial that failed before it had one, why."""
    towers = [path.name for path in sorted(runs.home().glob(f"{search.name}.tower-*"))]
    trials = {trial.run: trial for trial in Book(search.folder / "trials.jsonl").trials.values()}
    found: dict[str, str] = {}
    for name in (search.name, *towers, *trials):
        path = runs.home() / name / "logs" / "driver.log"
        outcome = trials[name].outcome if name in trials else None
        if path.exists():
            found[name] = path.read_text("utf-8", "replace")
        elif outcome is not None and outcome.cause:
            found[name] = f"failed: {outcome.cause}\n"
    return found

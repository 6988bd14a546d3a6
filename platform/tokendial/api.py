"""What the commands do, as Python calls: `train`, `evaluate`, `twins`, `forecast`, `report`, `comparison`, `export`;

`submit`, `follow`, `status`, `logs`, `stop` for runs wherever they are; `serve` and the keys of endpoints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendial import runs
from tokendial.contracts import RunConfig
from tokendial.experiments import ConfigError
from tokendial.results import RunResult
from tokendial.scores import Scores

if TYPE_CHECKING:
    from tokendial.jobs import Order, Standing
    from tokendial.promote import Promotion
    from tokendial.search.found import SearchResult
    from tokendial.serve.keys import Key, Usage
    from tokendial.serve.start import OpenEndpoint

Progress = Callable[[Mapping[str, Any]], None]


def _silent(latest: Mapping[str, Any]) -> None:
    del latest


def train(
    config: RunConfig[Any],
    name: str | None = None,
    new: bool = False,
    source: str | None = None,
    progress: Progress = _silent,
) -> RunResult:
    """Train, export, score and record a run; continue it where it was left; return at once what is already finished.

    Args:
        config: a resolved configuration.
        name: the run's name; default `user.experiment.hash`.
        new: start another run even where this one exists.
        source: a finished run whose weights this one starts from.
        progress: called with {"stage", "step", "total", "loss", …} as the run goes.

    Raises:
        ConfigError: the input is bad. WorkFailed: training failed after its restarts.
    """
    from tokendial.train.driver import train as drive

    return drive(config, name=name, new=new, source=source, progress=progress)


def search(
    experiment: str,
    overrides: Sequence[str] = (),
    new: bool = False,
    retry: bool = False,
    progress: Progress = _silent,
    **options: Any,
) -> SearchResult:
    """Find the token schedule, or anything else of a configuration, at equal compute; continue or return a search.

    Args:
        experiment: its name; overrides with lists (`seed=0,1,2`) are searched.
        new: start another search even where this one exists.
        retry: run its trials that failed again.
        options: see `tokendial.search.drive.plan_search`.

    Raises:
        ConfigError: the input is bad. WorkFailed: every trial failed.
    """
    from tokendial.search import drive

    return drive.search(drive.plan_search(experiment, overrides, new=new, **options), progress, retry)


def promote(
    reference: str,
    trial: int | None = None,
    model: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = _silent,
) -> Promotion:
    """Register a run, or the best trial of a search, and make it the champion of a model.

    Raises:
        ConfigError: it cannot be promoted, or is worse than the champion. WorkFailed: it does not score as recorded.
    """
    from tokendial import promote as promoting

    return promoting.promote(reference, trial, model, force, dry_run, progress)


def rollback(model: str, tracking_uri: str | None = None) -> tuple[int, int]:
    """Move a model's champion back to the version before, in the registry of `tracking_uri`; returns (from, to)."""
    from tokendial import promote as promoting

    return promoting.rollback(model, tracking_uri)


def evaluate(
    model: str,
    counts: Sequence[int] | None = None,
    split: str | None = None,
    examples: int | None = None,
    progress: Progress = _silent,
) -> RunResult:
    """The token curve of a run or of an exported folder, over any admissible counts of a split."""
    from tokendial.evaluate import evaluate as score

    return score(model, counts=counts, split=split, examples=examples, progress=progress)


def twins(model: str, kind: str, seeds: Sequence[int], progress: Progress = _silent) -> RunResult:
    """Train the fixed-count twins of a run over seeds; its result gains regret and trained-at × served-at matrix."""
    from tokendial.twins import twins as compare

    return compare(runs.find(model), kind=kind, seeds=seeds, progress=progress)


def forecast(config: RunConfig[Any]) -> dict[str, Any]:
    """What a run will do and cost, before it starts."""
    from tokendial.forecast import forecast as predict

    return predict(config)


def report(references: Sequence[str]) -> list[RunResult]:
    """The results of finished runs."""
    return [runs.find(reference).read_result() for reference in references]


def comparison(references: Sequence[str]) -> Path:
    """One offline HTML file that compares finished runs, grouped by seed."""
    from tokendial.report import compare_report

    found = [runs.find(reference) for reference in references]
    results = [run.read_result() for run in found]
    scores = {
        result.name: Scores.read(run.folder / "scores.json").items for run, result in zip(found, results, strict=True)
    }
    folder = runs.home() / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'--'.join(result.name for result in results)[:150]}.html"
    runs.write_atomically(path, compare_report(results, scores))
    return path


def export(reference: str, to: Path) -> Path:
    """Copy a run's model folder to `to`, checking every file against the digests taken when it was written."""
    from tokendial.model_folder import check_digests

    run = runs.find(reference)
    run.read_result()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to {to} is not an empty folder; give one that is empty or absent")
    check_digests(run.model)
    shutil.copytree(run.model, to, dirs_exist_ok=True)
    return to


def submit(
    url: str, order: Order, progress: Progress = _silent, say: Callable[[str], None] = print, ready: bool = False
) -> dict[str, Any]:
    """Send an order to the Ray cluster at `url`; what its command's last line says, or its first where it then goes on.

    Raises:
        ConfigError: the address, the token or the order is bad. WorkFailed: the job failed, or nothing answers.
    """
    from tokendial import jobs

    cluster = jobs.Cluster(url)
    progress({"stage": "sending"})
    submission, new = jobs.send(cluster, order)
    again, end = f"`tokendial logs {order.run} --follow`", f"`tokendial stop {order.run}`"
    say(f"{order.run}: {'sent' if new else 'at work already'}; follow it again with {again}, end it with {end}")
    return jobs.follow(cluster, submission, progress, say, ready)


def follow(reference: str, url: str | None = None, say: Callable[[str], None] = print) -> None:
    """Say every line of a run's job on a cluster, from the first to its end."""
    from tokendial import jobs

    name, address = _located(reference, url)
    cluster = jobs.Cluster(address) if address else None
    job = jobs.find(cluster, name) if cluster else None
    if cluster is None or job is None:
        raise ConfigError(f"run {name!r} has no job to follow; give --on URL, or leave out --follow")
    jobs.follow(cluster, job["submission_id"], None, say)


def status(reference: str | None = None, url: str | None = None) -> list[Standing]:
    """Where one run or search stands, or every one here and on the cluster."""
    from tokendial import jobs

    if reference is None:
        return jobs.standings(url or _usual_cluster())
    return jobs.standing(*_located(reference, url), asked=url is not None)


def logs(reference: str, url: str | None = None, rank: int | None = None) -> Mapping[str, str]:
    """Logs of a run by name: `driver`, `rank-0`, …; of a search, those of its trials' drivers by the trial's run.

    Args:
        url: ask this cluster, not the runs folder here.
        rank: the log that matters, which a cluster's job has not.
    """
    from tokendial import jobs

    return jobs.read_logs(*_located(reference, url), elsewhere=url is not None, rank=rank)


def stop(reference: str, url: str | None = None) -> str:
    """Tell a run to stop; returns where it was told: `here` or a cluster's address.

    Without `url` what is at work here is told, else the job on the cluster that it was sent to.
    """
    from tokendial import jobs

    name, address = _located(reference, url)
    here = address is None or (url is None and jobs.works_here(name))
    return jobs.stop(name, None if here else jobs.Cluster(str(address)))


def _located(reference: str, url: str | None) -> tuple[str, str | None]:
    """A run's name, and its cluster: the one at `url`, else that it was sent to from here, else TOKENDIAL_CLUSTER."""
    from tokendial import jobs

    name = _last(url or _usual_cluster()) if reference == "last" else reference
    return name, url or jobs.sent_to(name) or _usual_cluster()


def _last(url: str | None) -> str:
    """The caller's own newest run: of the cluster, else of those started or sent here."""
    from tokendial import jobs

    if url is not None:
        return jobs.last_on(jobs.Cluster(url))
    sent, here = jobs.last_sent(), runs.last()
    if sent and (here is None or sent[1] > here.record.created):
        return sent[0]
    return here.name if here else "last"


def _usual_cluster() -> str | None:
    return os.environ.get("TOKENDIAL_CLUSTER") or None


def serve(
    model: str | None = None,
    overrides: Sequence[str] = (),
    tracking_uri: str | None = None,
    image_hosts: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> OpenEndpoint:
    """Open an endpoint on a model folder, a run, or a registered model; `wait()` keeps it until a signal.

    Raises:
        ConfigError: the input is bad. WorkFailed: the model does not start, or does not answer as recorded.
    """
    from tokendial.serve.start import start

    return start(model, overrides, tracking_uri, image_hosts, say)


def add_key(
    name: str,
    rate_per_s: float | None = None,
    min_quality: float | None = None,
    may_bend: bool = False,
    priority: int = 0,
) -> str:
    """Make an API key for endpoints and return its secret, of which only a hash is kept."""
    from tokendial.serve.keys import Key, key_store

    return key_store().add(Key(name, rate_per_s, min_quality, may_bend, priority))


def list_keys() -> list[tuple[Key, Usage]]:
    """Every API key with what was answered under it."""
    from tokendial.serve.keys import key_store

    return key_store().list()


def revoke_key(name: str) -> None:
    """Refuse an API key from now on; raises ConfigError where there is none in force."""
    from tokendial.serve.keys import key_store

    key_store().revoke(name)

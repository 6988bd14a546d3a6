"""Logs of a run as artifacts of its MLflow run, which stay when the cluster is gone."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient

from tokendial.failures import WorkFailed
from tokendial.tracking.server import AWAY, connect, patient, probe, reason
from tokendial.tracking.uri import redact

ARTIFACTS = "logs"


def log_logs(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Upload the driver's and the ranks' logs; those of an earlier part of the run are replaced by longer ones."""
    if folder.exists():
        client.log_artifacts(run_id, str(folder), ARTIFACTS)


def fetch_logs(uri: str, name: str) -> Mapping[str, str]:
    """Logs by name of the newest MLflow run called `name`, empty where there is none; WorkFailed if nobody answers."""
    try:
        return _fetched(uri, name)
    except AWAY as error:
        raise WorkFailed(f"tracking server {redact(uri)} is not usable ({reason(error, uri)})") from error


def _fetched(uri: str, name: str) -> Mapping[str, str]:
    probe(uri)
    client = connect(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    quoted = name.replace("'", "")
    found = client.search_runs(experiments, f"attributes.run_name = '{quoted}'", max_results=1) if experiments else []
    if not found or not client.list_artifacts(found[0].info.run_id, ARTIFACTS):
        return {}
    with TemporaryDirectory() as folder, patient():
        client.download_artifacts(found[0].info.run_id, ARTIFACTS, folder)
        return {path.stem: path.read_text("utf-8", "replace") for path in sorted(Path(folder).rglob("*.log"))}

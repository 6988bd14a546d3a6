"""Golden prompts of a registered version: the examples × counts table that its run logged, read back."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.results import ExampleAnswers
from tokendial.tracking.registry import resolve
from tokendial.tracking.server import AWAY, connect, patient, probe, reason
from tokendial.tracking.tables import read_examples_table

TABLE = "tables/examples.json"


def golden_examples(uri: str, reference: str) -> list[ExampleAnswers]:
    """The examples of a version's run, `NAME/7`; none where it has no run or no table.

    Raises WorkFailed where the server is away: a version is not served unasked because of that; ConfigError where the
    table cannot be read.
    """
    version = resolve(uri, reference)
    if version.run_id is None:
        return []
    try:
        probe(uri)
        if not _has_table(connect(uri), version.run_id):
            return []
        with patient(), TemporaryDirectory() as folder:
            at = download_artifacts(run_id=version.run_id, artifact_path="tables", dst_path=folder, tracking_uri=uri)
            return read_examples_table(json.loads((Path(at) / "examples.json").read_text("utf-8")), Path(at).parent)
    except AWAY as error:
        raise WorkFailed(f"golden prompts of {reference} are not to be had now: {reason(error, uri)}") from error
    except ValueError as error:
        raise ConfigError(f"{reference} cannot be held against its run, train it again: {error}") from error


def _has_table(client: MlflowClient, run_id: str) -> bool:
    try:
        return TABLE in {file.path for file in client.list_artifacts(run_id, "tables")}
    except MlflowException as error:
        # The run was removed for good.
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False

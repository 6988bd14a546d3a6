"""The MLflow client as tokendial uses it: an explicit address, short timeouts, no telemetry, failures by name."""

import logging
import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow's own defaults are 120 s and 7 retries: a server that is away would hold a call for four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from tokendial.tracking.uri import redact, scrub

PROBE_SECONDS = 3.0

# What a server that is away, busy, broken or unwilling raises; nothing else is caught.
AWAY = (MlflowException, SQLAlchemyError, OSError)

logger = logging.getLogger("tokendial.tracking")
logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.WARNING)


class TrackingUnavailable(ConnectionError):
    """The tracking server did not answer where the configuration asked for it (`tracking.strict`)."""


def connect(uri: str) -> MlflowClient:
    """A client of the server at `uri`, registry included, whatever the environment says."""
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def probe(uri: str, timeout_s: float = PROBE_SECONDS) -> None:
    """Raise OSError where an HTTP server does not answer in `timeout_s`; other stores fail on use."""
    if uri.startswith(("http://", "https://")):
        answer = requests.get(uri.rstrip("/") + "/health", timeout=timeout_s)
        if answer.status_code >= 500:
            raise ConnectionError(f"{redact(uri)} answers {answer.status_code}")


def reason(error: Exception, uri: str) -> str:
    """One line about a failure, without secrets."""
    lines = scrub(str(error), uri).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"

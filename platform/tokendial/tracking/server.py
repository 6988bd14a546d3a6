"""The MLflow client as tokendial uses it: an explicit address, short timeouts, no telemetry, failures by name."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow's own defaults are 120 s and 7 retries: a server that is away would hold a call for four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request_safe

from tokendial.tracking.uri import scrub

PROBE_SECONDS = 3.0
UPLOAD_SECONDS = 600

# What a server that is away, busy, broken or unwilling raises; nothing else is caught.
AWAY: tuple[type[Exception], ...] = (MlflowException, OSError)
if find_spec("sqlalchemy"):
    # Of the whole MLflow, which opens databases; the base install asks servers only.
    from sqlalchemy.exc import SQLAlchemyError

    AWAY += (SQLAlchemyError,)

# MLflow reads its timeout from the process's environment, so only one thread may have it raised.
_uploading = threading.Lock()

logger = logging.getLogger("tokendial.tracking")
logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.WARNING)


class TrackingUnavailable(ConnectionError):
    """The tracking server did not answer where the configuration asked for it (`tracking.strict`)."""


def connect(uri: str) -> MlflowClient:
    """A client of the server at `uri`, registry included, whatever the environment says."""
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def probe(uri: str) -> None:
    """Raise one of AWAY where an HTTP server does not answer in a few seconds; other stores fail on use."""
    if uri.startswith(("http://", "https://")):
        http_request_safe(get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=PROBE_SECONDS)


@contextmanager
def patient() -> Iterator[None]:
    """Give requests time to carry a model: a server may copy gigabytes before it answers. One thread at a time."""
    with _uploading:
        before = MLFLOW_HTTP_REQUEST_TIMEOUT.get()
        MLFLOW_HTTP_REQUEST_TIMEOUT.set(max(before, UPLOAD_SECONDS))
        try:
            yield
        finally:
            MLFLOW_HTTP_REQUEST_TIMEOUT.set(before)


def reason(error: Exception, uri: str) -> str:
    """One line about a failure, without secrets."""
    lines = scrub(str(error), uri).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"

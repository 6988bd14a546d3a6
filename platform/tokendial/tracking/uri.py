"""Tracking addresses: the default one, where its artifacts lie, and how to show one without its secret."""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tokendial.experiments import ConfigError

_SQLITE = "sqlite:///"


def default_uri(home: Path) -> str:
    """SQLite database `mlflow.db` under the folder that runs live in."""
    return _SQLITE + (home.resolve() / "mlflow.db").as_posix()


def resolve_uri(configured: str | None, home: Path) -> str:
    """The address to track at: the configured one, else `MLFLOW_TRACKING_URI`, else the default under `home`.

    A relative SQLite path is made absolute, because workers run in other folders. Raises ConfigError for an address
    that cannot hold runs, or that holds a password: addresses are stored with the run.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(home)
    name = "tracking.uri" if configured else "MLFLOW_TRACKING_URI"
    if "\0" in uri:
        raise ConfigError(f"{name} {redact(uri)!r} holds a NUL, which no address does")
    try:
        password = urlsplit(uri).password
    except ValueError:
        # Its own words may quote a password.
        raise ConfigError(f"{name} {uri.rpartition('@')[2]!r} is not an address") from None
    if password:
        raise ConfigError(
            f"{name} {redact(uri)!r} came with a password, which would be stored with the run; set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
    if uri.startswith(_SQLITE):
        path = uri.removeprefix(_SQLITE).partition("?")[0]
        if not path or path == ":memory:":
            raise ConfigError(f"{name} {uri!r} is a database in memory, which no other process sees")
        return _SQLITE + Path(path).resolve().as_posix()
    if not re.match(r"https?://.|(postgresql|mysql|mssql)(\+\w+)?://.", uri):
        raise ConfigError(
            f"{name} {redact(uri)!r} is not an MLflow address: sqlite:///PATH, http(s)://HOST:PORT or a database"
        )
    return uri


def artifact_root(uri: str) -> str | None:
    """`mlartifacts` beside a SQLite database, as a file URI; None where the server decides."""
    if not uri.startswith(_SQLITE):
        return None
    return (Path(uri.removeprefix(_SQLITE)).resolve().parent / "mlartifacts").as_uri()


def redact(uri: str) -> str:
    """The address without user, password, query and fragment, safe to print and store."""
    parts = urlsplit(uri)
    if uri.startswith(_SQLITE) or not parts.netloc:
        return uri.partition("?")[0]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def scrub(text: str, uri: str) -> str:
    """The text with every secret of the address replaced, for messages of other libraries that quote it."""
    parts = urlsplit(uri)
    secrets = [parts.netloc.rpartition("@")[0], parts.password or "", parts.query]
    text = text.replace(uri, redact(uri))
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def fingerprint(uri: str) -> str:
    """16 hex digits that tell two addresses apart."""
    return hashlib.blake2b(uri.encode(), digest_size=8).hexdigest()

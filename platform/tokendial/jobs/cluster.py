"""A Ray cluster's Jobs API over plain HTTP: packages, jobs, logs. The address and the token are checked first.

The token is looked for where Ray's own tools look: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed

TIMEOUT_S = 30.0
# What Ray says, having started nothing, while its nodes come up.
NO_AGENT = "No available agent"
START_S, POLL_S = 60.0, 0.5


class Unreachable(WorkFailed):
    """The cluster did not answer; the work on it is not affected."""


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would take the token to another host."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class Cluster:
    """The Jobs API at `http(s)://HOST:PORT`; raises ConfigError where the address or the token will not do."""

    def __init__(self, url: str) -> None:
        self.url = checked_address(url)
        self._token = find_token(self.url)
        proxies = [ProxyHandler({})] if is_loopback(self.url) else []
        self._opener: OpenerDirector = build_opener(*proxies, _NoRedirects())

    def upload(self, package: bytes) -> str:
        """The URI of a zip in the cluster's store, sent only where it is not there yet."""
        name = f"_ray_pkg_{hashlib.sha1(package, usedforsecurity=False).hexdigest()}.zip"
        path = f"/api/packages/gcs/{name}"
        try:
            self._call("GET", path)
        except _Absent:
            self._call("PUT", path, package)
        return f"gcs://{name}"

    def submit(self, document: Mapping[str, Any]) -> str:
        """Start a job and return its submission id; a cluster that has only just started is given a minute."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                return self._json("POST", "/api/jobs/", document)["submission_id"]
            except WorkFailed as error:
                if NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_S)

    def jobs(self) -> list[dict[str, Any]]:
        """Every submitted job that the cluster remembers, oldest first."""
        found = [job for job in self._json("GET", "/api/jobs/") if job["type"] == "SUBMISSION"]
        return sorted(found, key=lambda job: job["start_time"] or 0)

    def job(self, submission: str) -> dict[str, Any]:
        return self._json("GET", f"/api/jobs/{quote(submission)}")

    def log(self, job: Mapping[str, Any], lines: int = -1) -> str:
        """What a job's driver said, or its last lines; nothing where Ray has no log: it waits, or its node is gone.

        Not from `/api/jobs/…/logs`, which is an error where one byte of it is no UTF-8.
        """
        if job.get("driver_node_id") is None:
            return ""
        query = {"node_id": job["driver_node_id"], "submission_id": job["submission_id"], "lines": lines}
        path = f"/api/v0/logs/file?{urlencode(query)}"
        try:
            return self._call("GET", path).decode(errors="replace")
        except Unreachable:
            raise
        except WorkFailed:
            return ""

    def stop(self, submission: str) -> None:
        self._json("POST", f"/api/jobs/{quote(submission)}/stop")

    def _json(self, method: str, path: str, document: Mapping[str, Any] | None = None) -> Any:
        body = None if document is None else json.dumps(document).encode()
        answer = self._call(method, path, body, "application/json")
        try:
            return json.loads(answer)
        except ValueError:
            raise ConfigError(f"what answers at {self.url} is not a Ray dashboard (port 8265 by default)") from None

    def _call(self, method: str, path: str, body: bytes | None = None, kind: str = "application/zip") -> bytes:
        headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
        request = Request(self.url + path, data=body, headers=headers, method=method)
        try:
            try:
                with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                    return answer.read()
            except HTTPError as error:
                with error:
                    code, said = error.code, error.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            # Also an answer that breaks off, or is no HTTP at all.
            said = repr(error) if isinstance(error, HTTPException) else str(getattr(error, "reason", error))
            raise Unreachable(f"the cluster at {self.url} does not answer: {said}") from None
        raise _refusal(self.url, method, path, code, said)


class _Absent(WorkFailed):
    """404."""


def _refusal(url: str, method: str, path: str, code: int, said: str) -> Exception:
    lines = [line for line in said.strip().splitlines() if line.strip()]
    last = lines[-1][:300] if lines else ""
    if code in (401, 403):
        return ConfigError(
            f"the cluster at {url} refused the token; put its own into ~/.ray/auth_token (mode 0600) or RAY_AUTH_TOKEN"
        )
    if code == 404:
        return _Absent(f"the cluster at {url} knows nothing at {path}: {last}")
    if code >= 502:
        return Unreachable(f"the cluster at {url} does not answer: HTTP {code}")
    return WorkFailed(f"the cluster at {url} answered {method} {path} with {code}: {last}")


def checked_address(url: str) -> str:
    """The address without a trailing slash; raises ConfigError where it is no dashboard's or holds a secret."""
    try:
        parts, port = urlsplit(url), urlsplit(url).port
    except ValueError:
        # Its own words may quote a password.
        shown = url.rpartition("@")[2]
        raise ConfigError(f"--on {shown!r} is not an address; give http://HEAD:8265 or https://HOST") from None
    if parts.username or parts.password:
        host = parts.netloc.rpartition("@")[2]
        raise ConfigError(
            f"--on {parts.scheme}://***@{host} came with a user or password, which would be stored with jobs; put the "
            "cluster's token into ~/.ray/auth_token (mode 0600) or RAY_AUTH_TOKEN"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise ConfigError(f"--on {url!r} is not a dashboard's address; give http://HEAD:8265 or https://HOST")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_token(url: str) -> str | None:
    """The token to show; off loopback one is required unless RAY_AUTH_MODE=disabled says that there is none."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return None
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip() or _read_token()
    if token is not None and not (token.isascii() and token.isprintable()):
        raise ConfigError(f"the token for the cluster at {url} is not one line of ASCII; give it as Ray wrote it")
    if token is None and not is_loopback(url):
        raise ConfigError(
            f"there is no token for the cluster at {url}; put it into ~/.ray/auth_token (mode 0600) or RAY_AUTH_TOKEN, "
            "or set RAY_AUTH_MODE=disabled for a cluster that asks for none"
        )
    return token


def _read_token() -> str | None:
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        text = path.read_text("utf-8").strip()
    except FileNotFoundError:
        return None
    if named is None and path.stat().st_mode & 0o077:
        # Ray writes it readable by everyone, and whoever reads it may run code on the cluster.
        path.chmod(0o600)
    return text or None

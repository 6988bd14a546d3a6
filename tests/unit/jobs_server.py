"""What Ray's dashboard answers about jobs, for tests of the client: it keeps what is submitted and runs nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Dashboard:
    """Jobs by submission id, their logs, and every request as `METHOD /path`."""

    url: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    starting: int = 0  # submissions that it refuses, as a head does whose nodes are not up
    away: int = 0  # requests that a proxy before it answers with 503
    torn: int = 0  # logs that break off before their end

    def add(self, submission: str, run: str, user: str, status: str = "RUNNING", log: str | None = None) -> None:
        """A job of a run; a job that waits has no node yet, and without a log Ray does not find one."""
        started, about = 1000 * (1 + len(self.jobs)), {"tokendial_run": run, "user": user}
        self.jobs[submission] = {
            "type": "SUBMISSION", "submission_id": submission, "status": status, "message": "",
            "driver_exit_code": None, "start_time": started, "metadata": about,
            "driver_node_id": None if status == "PENDING" else "1",
        }  # fmt: skip
        if log is not None:
            self.logs[submission] = log

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        words = path.strip("/").split("/")
        match method, words:
            case "GET", ["api", "jobs"]:
                return 200, list(self.jobs.values())
            case "GET", ["api", "jobs", submission]:
                return 200, self.jobs[submission]
            case "POST", ["api", "jobs", submission, "stop"]:
                self.jobs[submission]["status"] = "STOPPED"
                return 200, {"stopped": True}
            case "POST", ["api", "jobs"] if self.starting:
                self.starting -= 1
                return 500, "No available agent to submit job, please try again later."
            case "POST", ["api", "jobs"]:
                document = json.loads(body)
                self.sent.append(document)
                about, submission = document["metadata"], document["submission_id"]
                self.add(submission, about["tokendial_run"], about["user"], "SUCCEEDED", '{"done": true}\n')
                self.jobs[submission]["metadata"] = about
                return 200, {"submission_id": submission}
            # Ray finds a job's log only beside the node it is on.
            case "GET", ["api", "v0", "logs", "file"] if "node_id" in query and query["submission_id"][0] in self.logs:
                lines = self.logs[query["submission_id"][0]].splitlines(keepends=True)
                last = int(query["lines"][0])
                return 200, "".join(lines if last == -1 else lines[-last:])
            case ("GET" | "PUT"), ["api", "packages", "gcs", _]:
                return 200, {}
        return 500, f"{method} {path}"


@contextmanager
def dashboard() -> Iterator[Dashboard]:
    """A dashboard on a free port of this machine."""
    board = Dashboard()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            board.asked.append(f"{self.command} {parts.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, answer = board.answer(self.command, parts.path, parse_qs(parts.query), body)
            content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            board.away, code = max(0, board.away - 1), 503 if board.away else code
            torn = board.torn > 0 and "logs" in parts.path
            board.torn -= torn
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:5] if torn else content)

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        board.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield board
        server.shutdown()

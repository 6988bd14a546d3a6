"""Follow a job to its end: its log as it grows, its progress as a bar, its last line as the result."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.jobs.cluster import Cluster, Unreachable
from tokendial.progress import read_line

POLL_S = 1.0
# The whole log comes with every poll, so a long one is asked for less often.
BYTES_PER_SECOND = 100_000
PATIENCE_S = 900.0
BAD_INPUT = 2
# As the command on the cluster ends where it is told to stop there, past Ray.
TERMINATED = 143

Progress = Callable[[Mapping[str, Any]], None]
Say = Callable[[str], None]


def follow(
    cluster: Cluster, submission: str, progress: Progress | None, say: Say, ready: bool = False
) -> dict[str, Any]:
    """Wait for a job and return the JSON object of its last line; without `progress` every line is said.

    With `ready` the first such line is enough, which an endpoint says when it answers.

    A connection that drops is taken up again for `PATIENCE_S`. Raises what the job's own end stands for: ConfigError
    for bad input, WorkFailed for the rest, Unreachable where the cluster stays away.
    """
    log, heard = _Log(progress, say), time.monotonic()
    again = f"tokendial logs {submission} --follow --on {cluster.url}"
    log.stage("waiting for the cluster")
    while True:
        try:
            job = cluster.job(submission)
            text = cluster.log(job)
        except Unreachable as error:
            if time.monotonic() - heard > PATIENCE_S:
                raise Unreachable(f"{error}; the job may still run there: {again}") from error
            log.stage("the cluster does not answer; trying again")
            time.sleep(2 * POLL_S)
            continue
        heard = time.monotonic()
        log.show(text, ended=job["status"] in ("SUCCEEDED", "FAILED", "STOPPED"))
        if job["status"] == "SUCCEEDED" or (ready and log.answered):
            return log.result()
        if job["status"] in ("FAILED", "STOPPED"):
            raise _end(job, log)
        time.sleep(max(POLL_S, len(text) / BYTES_PER_SECOND))


class _Log:
    """The lines of a job's log that were not shown yet."""

    def __init__(self, progress: Progress | None, say: Say) -> None:
        self._progress, self._say = progress, say
        self._shown = 0
        self.lines: list[str] = []

    def stage(self, name: str) -> None:
        if self._progress is not None:
            self._progress({"stage": name})

    def show(self, text: str, ended: bool) -> None:
        new = text[self._shown :]
        whole = new if ended else new[: new.rfind("\n") + 1]
        self._shown += len(whole)
        for line in whole.splitlines():
            self.lines.append(line)
            latest = read_line(line)
            if self._progress is None:
                self._say(line)
            elif latest is not None:
                self._progress(latest)
            elif not line.startswith(("{", "tokendial: ")) and line.strip():
                self._say(line)

    @property
    def answered(self) -> bool:
        return any(line.startswith("{") for line in self.lines)

    def result(self) -> dict[str, Any]:
        last = next((line for line in reversed(self.lines) if line.startswith("{")), None)
        if last is None:
            raise WorkFailed("the job ended without a result; its log is above")
        return json.loads(last)

    def failure(self) -> str | None:
        """The sentence that the command on the cluster ended with."""
        said = [line.removeprefix("tokendial: ") for line in self.lines if line.startswith("tokendial: ")]
        return said[-1] if said else None


def _end(job: Mapping[str, Any], log: _Log) -> Exception:
    said = log.failure()
    if job["status"] == "STOPPED" or job.get("driver_exit_code") == TERMINATED:
        return WorkFailed("the job was stopped; the same command continues the run")
    if job.get("driver_exit_code") == BAD_INPUT and said:
        return ConfigError(said)
    told = str(job["message"] or "no reason given").strip().splitlines()[-1]
    return WorkFailed(f"the job failed: {said or told}; the same command continues the run")

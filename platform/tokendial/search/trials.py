"""The done-ledger of a search: `trials.jsonl`, a line for each event, on disk before anything acts on it.

    {"event": "asked", "trial": 3, "chosen": {…}, "overrides": […], "run": NAME}
    {"event": "rung", "trial": 3, "rung": 0, "share": 0.11, "score": 0.41, "goes_on": true}
    {"event": "done", "trial": 3, "status": "FINISHED", "values": {"autc": 0.52}, "curve": {"4": 0.3, …}, …}
    {"event": "again", "trial": 3}
    {"event": "session", "seconds": 812.4, "slots": 2, "trained_seconds": 1304.0}

A trial is asked once and done once; what was asked and is not done is run again under its own name, which continues it.
One that failed is done too, until somebody asks for it again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tokendial.experiments import ConfigError
from tokendial.search.objective import prices
from tokendial.search.space import Candidate

TrialStatus = Literal["FINISHED", "PRUNED", "FAILED"]


@dataclass(frozen=True)
class Rung:
    """A trial was judged at a rung: at what share of its allowance, with which score, and whether it went on."""

    rung: int
    share: float
    score: float
    goes_on: bool


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `values` are its objectives but for `cost`, which follows from all trials; `curve` is quality
    by count, `costs` FLOPs of an answer by count, `flops` what it spent.

    `group` is equal where only seeds differ. `seconds` is wall time of the trial, `trained_seconds` of its optimizer
    steps. A pruned trial has the curve it was judged by; a failed one has a `cause`.
    """

    status: TrialStatus
    values: Mapping[str, float] = field(default_factory=dict)
    curve: Mapping[int, float] = field(default_factory=dict)
    costs: Mapping[int, float] = field(default_factory=dict)
    flops: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    trained_seconds: float = 0.0
    cause: str | None = None
    run_id: str | None = None
    group: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class Trial:
    number: int
    candidate: Candidate
    run: str
    rungs: tuple[Rung, ...] = ()
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Session:
    """A stretch of work on the search: wall seconds, trials at once, and seconds of their optimizer steps."""

    seconds: float
    slots: int
    trained_seconds: float


class Book:
    """The trials of a search by number; one process writes it, any may read it; `began` with its first line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trials: dict[int, Trial] = {}
        self.sessions: list[Session] = []
        self._done: list[int] = []
        self.began: float | None = None
        for event in _events(path):
            self._apply(event)

    @property
    def ended(self) -> list[tuple[Trial, Outcome]]:
        """Trials that have ended, with how, in the order in which they did."""
        trials = (self.trials[number] for number in self._done)
        return [(trial, trial.outcome) for trial in trials if trial.outcome is not None]

    def worths(self, objectives: Sequence[str]) -> dict[int, Mapping[str, float]]:
        """Objectives of the finished trials by number, `cost` by the best of them."""
        finished = {trial.number: outcome for trial, outcome in self.ended if outcome.status == "FINISHED"}
        if "cost" not in objectives or not finished:
            return {number: outcome.values for number, outcome in finished.items()}
        found = prices({number: (outcome.curve, outcome.costs) for number, outcome in finished.items()})
        return {number: {**outcome.values, "cost": found[number]} for number, outcome in finished.items()}

    def best(self, objective: str) -> float:
        """The largest value of an objective among finished trials; there must be one."""
        return max(outcome.values[objective] for _, outcome in self.ended if outcome.status == "FINISHED")

    def asked(self, number: int, candidate: Candidate, run: str) -> Trial:
        chosen = {"chosen": dict(candidate.chosen), "overrides": list(candidate.overrides)}
        self._write({"event": "asked", "trial": number, **chosen, "run": run})
        return self.trials[number]

    def judged(self, number: int, rung: Rung) -> None:
        self._write({"event": "rung", "trial": number, **asdict(rung)})

    def done(self, number: int, outcome: Outcome) -> None:
        """Record how a trial ended; a second ending of the same trial is a fault of ours."""
        assert self.trials[number].outcome is None, f"trial {number} is done already"
        self._write({"event": "done", "trial": number, **asdict(outcome)})

    def again(self, number: int) -> None:
        """Have a trial that failed run once more."""
        self._write({"event": "again", "trial": number})

    def worked(self, session: Session) -> None:
        self._write({"event": "session", "trial": None, **asdict(session)})

    def _write(self, event: dict[str, Any]) -> None:
        event = {**event, "time": round(time.time(), 3)}
        _cut_torn_line(self._path)
        with self._path.open("ab") as file:
            file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._apply(json.loads(json.dumps(event)))

    def _apply(self, event: dict[str, Any]) -> None:
        number, kind = event.pop("trial"), event.pop("event")
        moment = event.pop("time", None)
        self.began = self.began or moment
        match kind:
            case "session":
                self.sessions.append(Session(**event))
            case "asked":
                candidate = Candidate(event["chosen"], tuple(event["overrides"]))
                self.trials[number] = Trial(number, candidate, event["run"])
            case "rung":
                trial = self.trials[number]
                self.trials[number] = replace(trial, rungs=(*trial.rungs, Rung(**event)))
            case "done":
                self.trials[number] = replace(self.trials[number], outcome=outcome_of(event))
                self._done.append(number)
            case "again":
                self.trials[number] = replace(self.trials[number], outcome=None)
                self._done.remove(number)


def outcome_of(document: Mapping[str, Any]) -> Outcome:
    """An outcome that was written as JSON, which has no numbers for keys."""
    by_count = {name: {int(k): v for k, v in document.get(name, {}).items()} for name in ("curve", "costs")}
    return Outcome(**{**document, **by_count})


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line; a kill may have torn the last one. Raises ConfigError for another that is no event."""
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"}\n"):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ConfigError(f"{path} is broken; repair it or move the folder away") from error


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)

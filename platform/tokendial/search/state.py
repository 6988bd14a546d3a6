"""Searches in the run store, by name as runs are, and how the work on one stands: `state.json` beside its ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tokendial import runs
from tokendial.experiments import ConfigError
from tokendial.results import Status
from tokendial.search.found import find_search, read_plan
from tokendial.search.trials import Book

FILE = "state.json"


class State(BaseModel):
    """That a search is worked on (RUNNING), or how the work ended and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status
    error: str | None = None

    def write(self, folder: Path) -> None:
        runs.write_atomically(folder / FILE, self.model_dump_json())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What was written last; a search from before states were written is as its files say."""
        path = folder / FILE
        if not path.exists():
            return cls(status="FINISHED" if (folder / "result.json").exists() else "RUNNING")
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is broken; delete it") from error


def find_work(reference: str) -> tuple[Literal["run", "search"], runs.Run]:
    """What a name means here: a search, or else a run; raises ConfigError where it is neither.

    A search is held and told to stop by its folder as a run is; it has a plan and a ledger for a record.
    """
    folder = find_search(reference)
    return ("run", runs.find(reference)) if folder is None else ("search", runs.Run(folder))


def list_searches() -> list[runs.Run]:
    """Every search under the home folder whose files can be read."""
    return [runs.Run(path.parent) for path in runs.home().glob("*/plan.json") if _readable(path.parent)]


def _readable(folder: Path) -> bool:
    try:
        return all((read_plan(folder), Book(folder / "trials.jsonl"), State.read(folder)))
    except (ConfigError, OSError):
        return False

"""Who started a run and from what source: captured on the machine it was sent from."""

import getpass
import os
import re
import subprocess
from pathlib import Path

from pydantic import BaseModel, ConfigDict

MAX_DIFF_CHARS = 1_000_000
# Set for a job that was sent here: the file in its working folder that says who sent it, and from what source.
VARIABLE = "TOKENDIAL_IDENTITY"
FILE = "identity.json"


class Identity(BaseModel):
    """`diff` is the uncommitted change against `commit`; both are empty outside a git checkout."""

    model_config = ConfigDict(frozen=True)

    user: str
    commit: str = ""
    diff: str = ""

    @property
    def dirty(self) -> bool:
        return bool(self.diff)


def capture(folder: Path | None = None) -> Identity:
    """The caller's user name, and the commit and uncommitted diff of `folder` (default: the working folder).

    In a job it is what was captured where the job was sent from.
    """
    if sent := os.environ.get(VARIABLE):
        return Identity.model_validate_json(Path(sent).read_text("utf-8"))
    commit = _git("rev-parse", "HEAD", folder=folder).strip()
    diff = _git("diff", "HEAD", folder=folder) if commit else ""
    return Identity(user=user_name(), commit=commit, diff=diff[:MAX_DIFF_CHARS])


def user_name() -> str:
    """The user's login name, reduced to letters, digits, `_` and `-`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "unknown"
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[:32]


def _git(*arguments: str, folder: Path | None) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""

"""Who started a run and from what source: captured on the machine it was sent from."""

import getpass
import os
import re
import subprocess
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tokendial.contracts import home

MAX_DIFF_CHARS = 1_000_000
# Set for a job that was sent here: the file in its working folder that says who sent it, and from what source.
VARIABLE = "TOKENDIAL_IDENTITY"
FILE = "identity.json"


class Identity(BaseModel):
    """`diff` is the uncommitted change against `commit`, Python files that git does not know yet included.

    Where tokendial itself is in another checkout, what is uncommitted there comes behind it. Outside both are empty.
    """

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
    diff = _uncommitted(folder) if commit else ""
    own = Path(__file__)
    # Where git does not know the file, tokendial is installed, and a checkout around it is not its own.
    apart = _git("ls-files", own.name, folder=own.parent) and _top(own.parent) != _top(folder)
    if apart and (changed := _uncommitted(own.parent)):
        diff += f"# tokendial itself, at {_git('rev-parse', 'HEAD', folder=own.parent)}{changed}"
    return Identity(user=user_name(), commit=commit, diff=diff[:MAX_DIFF_CHARS])


def _top(folder: Path | None) -> str:
    return _git("rev-parse", "--show-toplevel", folder=folder).strip()


def _uncommitted(folder: Path | None) -> str:
    """What is changed in the checkout around a folder, and its new Python files, as a patch; runs are left out."""
    # Colours and tools of the user's own are no part of a patch.
    parts = [_git("-c", "color.ui=never", "diff", "--no-ext-diff", "HEAD", folder=folder)]
    names = _git("ls-files", "-z", "--full-name", "--others", "--exclude-standard", ":/*.py", folder=folder)
    top, size = Path(_top(folder)), len(parts[0])
    for name in filter(None, names.split("\0")):
        path = top / name
        if size < MAX_DIFF_CHARS and path.is_file() and not path.is_relative_to(home().resolve()):
            parts.append(_new_file(name, path.read_text("utf-8", "replace")))
            size += len(parts[-1])
    return "".join(parts)


def _new_file(name: str, text: str) -> str:
    head = f"diff --git a/{name} b/{name}\nnew file mode 100644\n"
    if not text:
        return head
    lines = text.removesuffix("\n").split("\n")
    body = "".join(f"+{line}\n" for line in lines) + ("" if text.endswith("\n") else "\\ No newline at end of file\n")
    return f"{head}--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n{body}"


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

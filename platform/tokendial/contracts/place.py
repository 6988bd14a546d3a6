"""Where everything is kept: one folder that platform and workloads find alike."""

import os
from pathlib import Path


def home() -> Path:
    """Where runs and caches live: `TOKENDIAL_HOME`, or `runs` under the working folder.

    A job's working folder is Ray's copy, which goes with the job; there it is `runs` in the user's own folder.
    """
    place = os.environ.get("TOKENDIAL_HOME")
    if place is None and "runtime_resources" in Path.cwd().parts:
        return Path.home() / "runs"
    return Path(place or "runs").resolve()

"""`tokendial bench PART`: measure this machine against stated floors and peers. Importing this stays light."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from tokendial.experiments import ConfigError

__all__ = ["PARTS", "run"]

# Each part's module has a `main(arguments) -> exit status`; kernels keep their bench beside them.
PARTS = {
    "train": "tokendial.bench.train",
    "serve": "tokendial.bench.serve",
    "search": "tokendial.bench.search",
    "jobs": "tokendial.bench.jobs",
    "kernels": "tokendial_kernels.bench",
}


def run(part: str, args: Sequence[str]) -> int:
    """Measure one part with the options in `args`; ConfigError where there is no such part."""
    if part not in PARTS:
        raise ConfigError(f"bench part {part!r} is unknown; choose one of {', '.join(PARTS)}")
    return importlib.import_module(PARTS[part]).main(list(args))

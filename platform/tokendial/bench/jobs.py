"""`tokendial bench jobs`: the client, a run sent against one started here, a lost head under load, forecasts.

Parts run one after another, from the repository's root. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tokendial import environment
from tokendial.bench import parts, records
from tokendial.experiments import ConfigError

PARTS = {
    "client": "the client: upload, base install into a fresh environment, import",
    "sent": "command to first step of a run sent to a warm local cluster, over one started here",
    "head": "the head killed under a steady load, its state stored: requests that fail",
    "forecast": "time of a run forecast from its configuration and a short probe, against what it takes",
}
SCRIPTS = Path("clusters") / "local"


def main(arguments: Sequence[str]) -> int:
    """Measure, print, keep, or show what was kept."""
    chosen = parts.parser("jobs", __doc__, PARTS, "as little as can be").parse_args(list(arguments))
    records.chosen_parts(chosen.only, PARTS)
    if chosen.show:
        return parts.show(chosen.out)
    if not SCRIPTS.is_dir():
        raise ConfigError(f"{SCRIPTS} is not here; run this in the repository's root")
    environment.apply()
    from tokendial.train.driver import sigterm_raises

    def rows(part: str) -> list[records.Row]:
        # A cluster that was started for a part ends with it, also where this process is told to stop.
        with sigterm_raises(), tempfile.TemporaryDirectory(prefix="tokendial-bench-") as folder:
            return _measure(part)(Path(folder), chosen.quick)

    return parts.measure(chosen, PARTS, rows)


def _measure(part: str) -> Callable[[Path, bool], list[records.Row]]:
    """A part's measurement as a function of an empty folder and of haste."""
    from tokendial.bench import foretold, laptop, lost_head

    return {
        "client": lambda folder, quick: laptop.client_rows(Path.cwd(), folder),
        "sent": lambda folder, quick: laptop.sent_rows(SCRIPTS.resolve(), folder, 2 if quick else 3),
        "head": lambda folder, quick: lost_head.head_rows(SCRIPTS.resolve(), folder, 200 if quick else 1000),
        "forecast": lambda folder, quick: foretold.forecast_rows(folder, 100 if quick else 400),
    }[part]

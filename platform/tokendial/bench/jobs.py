"""`tokendial bench jobs`: the client, a run sent against one started here, a lost head under load, forecasts.

Parts run one after another, from the repository's root. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from tokendial import environment
from tokendial.bench import records
from tokendial.experiments import ConfigError

PARTS = {
    "client": "the client: upload, base install into a fresh environment, import",
    "sent": "command to first step of a run sent to a warm local cluster, over one started here",
    "head": "the head killed under a steady load, its state stored: requests that fail",
    "forecast": "time of a run forecast from its configuration and a short probe, against what it takes",
}
SCRIPTS = Path("clusters") / "local"


def main(arguments: Sequence[str]) -> int:
    """Measure, print, keep; 0 whether or not targets are met, because the rows say so."""
    chosen = _parser().parse_args(list(arguments))
    parts = records.chosen_parts(chosen.only, PARTS)
    console = Console(width=140)
    if chosen.show:
        for sections in records.read(chosen.out).values():
            for part, section in sections.items():
                console.print(f"{part}: {PARTS.get(part, '')}", highlight=False)
                console.print(records.table(section.rows))
        return 0
    if not SCRIPTS.is_dir():
        raise ConfigError(f"{SCRIPTS} is not here; run this in the repository's root")
    environment.apply()
    from tokendial.train.driver import sigterm_raises

    for part in parts:
        before = records.load()
        # A cluster that was started for a part ends with it, also where this process is told to stop.
        with sigterm_raises(), tempfile.TemporaryDirectory(prefix="tokendial-bench-") as folder:
            found = records.section(_measure(part)(Path(folder), chosen.quick), before)
        console.print(f"{part}: {PARTS[part]} (load {before} before, {found.load_after} after)", highlight=False)
        console.print(records.table(found.rows))
        if not chosen.quick:
            records.keep(chosen.out, part, found)
    return 0


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<9} {meaning}" for name, meaning in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="tokendial bench jobs",
        description=f"{__doc__}\n\nParts:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas (default all)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/jobs.json"), help="file the rows are kept in")
    parser.add_argument("--quick", action="store_true", help="as little as can be, nothing kept: does it run?")
    parser.add_argument("--show", action="store_true", help="print kept rows only")
    return parser


def _measure(part: str) -> Callable[[Path, bool], list[records.Row]]:
    """A part's measurement as a function of an empty folder and of haste."""
    from tokendial.bench import foretold, laptop, lost_head

    return {
        "client": lambda folder, quick: laptop.client_rows(Path.cwd(), folder),
        "sent": lambda folder, quick: laptop.sent_rows(SCRIPTS.resolve(), folder, 2 if quick else 3),
        "head": lambda folder, quick: lost_head.head_rows(SCRIPTS.resolve(), folder, 200 if quick else 1000),
        "forecast": lambda folder, quick: foretold.forecast_rows(folder, 100 if quick else 600),
    }[part]

"""A bench of several parts as a command: parts are measured one after another, printed, kept, and shown again."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from tokendial.bench import records
from tokendial.experiments import ConfigError

WIDTH = 140


def parser(name: str, about: str | None, parts: Mapping[str, str], quick: str) -> argparse.ArgumentParser:
    """What `tokendial bench NAME` takes; `quick` says what haste leaves of a measurement."""
    listed = "\n".join(f"  {part:<9} {meaning}" for part, meaning in parts.items())
    made = argparse.ArgumentParser(
        prog=f"tokendial bench {name}",
        description=f"{about}\n\nParts:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--only", default=",".join(parts), help="parts, separated by commas (default all)")
    made.add_argument("--out", type=Path, default=Path(f"benchmarks/{name}.json"), help="file the rows are kept in")
    made.add_argument("--quick", action="store_true", help=f"{quick}, nothing kept: does it run?")
    made.add_argument("--show", action="store_true", help="print kept rows only")
    return made


def measure(chosen: argparse.Namespace, parts: Mapping[str, str], rows: Callable[[str], list[records.Row]]) -> int:
    """Measure the chosen parts; 0 whether or not targets are met, because the rows say so."""
    console = Console(width=WIDTH)
    for part in records.chosen_parts(chosen.only, parts):
        before = records.load()
        found = records.section(rows(part), before)
        console.print(f"{part}: {parts[part]} (load {before} before, {found.load_after} after)", highlight=False)
        console.print(records.table(found.rows))
        if not chosen.quick:
            records.keep(chosen.out, part, found)
    if not chosen.quick:
        console.print(f"rows are in {chosen.out} under {records.machine()!r}", highlight=False)
    return 0


def show(path: Path) -> int:
    """Print the kept rows; raises ConfigError where there are none."""
    console, recorded = Console(width=WIDTH), records.read(path)
    if not recorded:
        raise ConfigError(f"{path} holds no rows; the same command without --show records them")
    for machine, sections in recorded.items():
        for part, found in sections.items():
            console.print(f"{machine}; {part}; {found.date}; commit {found.commit[:12]}", highlight=False)
            console.print(records.table(found.rows))
        print(records.markdown(sections))
    return 0

"""`tokendial bench search`: do short trials rank schedules, and what do the searchers save? Trained once, replayed.

    collect   train schedules of the default space once at one equal allowance, with curves on the way (resumable)
    rank      named schedules at two allowances: Kendall's tau between the two rankings
    versus    the best schedule collected against 2:3:5 and uniform, on three seeds that did not choose it
    replay    random search, asha, optuna and the Pareto mode on the collected curves, over many seeds
    show      what the file holds

Rows are in benchmarks/search_curves.json. Runs train in this process, on one core, from one common start.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.console import Console

from tokendial import environment
from tokendial.bench import curves
from tokendial.experiments import ConfigError

PARTS = ("collect", "rank", "versus", "replay", "show")


def main(arguments: Sequence[str]) -> int:
    """Measure one part, keep its rows, print its table."""
    chosen = _parser().parse_args(list(arguments))
    console = Console(width=140)
    table = curves.Curves.read(chosen.out)
    if chosen.part in ("collect", "rank", "versus"):
        environment.apply()
        wanted = {"collect": curves.of_space, "rank": curves.of_presets, "versus": curves.of_contest}[chosen.part]
        curves.train_missing(table, islice(wanted(table), chosen.runs), chosen.out, console)
    if chosen.part == "replay":
        from tokendial.bench.replay import replay_rows

        table.keep("replay", replay_rows(table, chosen.seeds), chosen.out)
    if not table.rows:
        raise ConfigError(f"{chosen.out} holds no curves; `tokendial bench search collect` trains them")
    curves.show(table, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokendial bench search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS, help="what to do")
    parser.add_argument("--runs", type=int, default=48, help="runs of the part in all (default 48)")
    parser.add_argument("--seeds", type=int, default=200, help="seeds of `replay` (default 200)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/search_curves.json"), help="file of the rows")
    return parser

"""`tokendial bench train`: step time against peers, saving of a mixed law, tracking, pooling, start, memory.

Parts run one after another; within a part, loops take turns step by step. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from tokendial import environment
from tokendial.bench import records
from tokendial.experiments import ConfigError, experiment_names

PARTS = {
    "one": "ZeRO 0–3 and HF Trainer + DeepSpeed with one worker, against a plain torch loop",
    "two": "the same with two workers, against DDP-gloo",
    "saving": "saving realised by the 2:3:5 law against always-max",
    "pooling": "CPU pooling against the read floor",
    "start": "command to first step, peak memory of a worker",
}
QUICK_STEPS = 3


def main(arguments: Sequence[str]) -> int:
    """Measure, print, keep; 0 whether or not targets are met, because the rows say so."""
    chosen = _parser().parse_args(list(arguments))
    parts = records.chosen_parts(chosen.only, PARTS)
    if chosen.experiment not in experiment_names() and ":" not in chosen.experiment:
        raise ConfigError(f"experiment {chosen.experiment!r} is unknown; `tokendial train --list` shows them")
    if chosen.steps < 2:
        raise ConfigError(f"--steps {chosen.steps} is too few for a median and its spread; give 2 or more")
    console = Console(width=140)
    if chosen.show:
        return _show(console, chosen.out)
    environment.apply()
    steps = QUICK_STEPS if chosen.quick else chosen.steps
    for part in parts:
        before = records.load()
        found = records.section(_measure(part)(chosen.experiment, steps), before)
        console.print(f"{part}: {PARTS[part]} (load {before} before, {found.load_after} after)", highlight=False)
        console.print(records.table(found.rows))
        if not chosen.quick:
            records.keep(chosen.out, part, found)
    if not chosen.quick:
        console.print(f"rows are in {chosen.out} under {records.machine()!r}", highlight=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<8} {meaning}" for name, meaning in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="tokendial bench train",
        description=f"{__doc__}\n\nParts:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=40, help="steps of each loop after 5 of warm-up (default 40)")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas (default all)")
    parser.add_argument("--experiment", default="digits.demo", help="experiment whose model and data are used")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/train.json"), help="file the rows are kept in")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, nothing kept: does it run?")
    parser.add_argument("--show", action="store_true", help="print kept rows and the README's table only")
    return parser


def _measure(part: str) -> Callable[[str, int], list[records.Row]]:
    """A part's measurement as a function of experiment and steps; torch and Ray are imported here."""
    from tokendial.bench import gang, step
    from tokendial.bench.pooling import pooling_rows
    from tokendial.bench.start import start_rows
    from tokendial.train.driver import sigterm_raises

    def on_ray(measure: Callable[[], list[records.Row]]) -> list[records.Row]:
        try:
            with sigterm_raises():
                return measure()
        finally:
            gang.disconnect()

    return {
        "one": lambda name, steps: on_ray(lambda: step.step_rows(name, 1, steps)),
        "two": lambda name, steps: on_ray(lambda: step.step_rows(name, 2, steps)),
        "saving": lambda name, steps: on_ray(lambda: step.saving_rows(name, steps)),
        "pooling": lambda name, steps: pooling_rows(steps),
        "start": lambda name, steps: start_rows(name),
    }[part]


def _show(console: Console, path: Path) -> int:
    recorded = records.read(path)
    if not recorded:
        raise ConfigError(f"{path} holds no rows; `tokendial bench train` records them")
    for machine, parts in recorded.items():
        for part, found in parts.items():
            console.print(f"{machine}; {part}; {found.date}; commit {found.commit[:12]}", highlight=False)
            console.print(records.table(found.rows))
        print(records.markdown(parts))
    return 0

"""`tokendial bench serve`: the endpoint against its floor and uvicorn, overload, batching, counts, and the governor.

Parts run one after another; within a part, targets take turns. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from tokendial import environment
from tokendial.bench import records

PARTS = {
    "edge": "digits: added time and requests/s on Ray Serve, against its empty handler and uvicorn",
    "overload": "bench model: ten times the capacity",
    "counts": "bench model: smallest against largest count at batch 32",
    "batching": "bench model: batched by count against one after another",
    "governor": "bench model: accepted requests over their target, governed and not",
}


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
    environment.apply()
    for part in parts:
        before = records.load()
        with tempfile.TemporaryDirectory(prefix="tokendial-bench-") as folder:
            found = records.section(_measure(part)(Path(folder), chosen.quick), before)
        console.print(f"{part}: {PARTS[part]} (load {before} before, {found.load_after} after)", highlight=False)
        console.print(records.table(found.rows))
        if not chosen.quick:
            records.keep(chosen.out, part, found)
    return 0


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<9} {meaning}" for name, meaning in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="tokendial bench serve",
        description=f"{__doc__}\n\nParts:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas (default all)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/serve.json"), help="file the rows are kept in")
    parser.add_argument("--quick", action="store_true", help="as few rounds as can be, nothing kept: does it run?")
    parser.add_argument("--show", action="store_true", help="print kept rows only")
    return parser


def _measure(part: str) -> Callable[[Path, bool], list[records.Row]]:
    """A part's measurement as a function of an empty folder and of haste; torch and Ray are imported here."""
    from tokendial.bench import serve_edge, serve_engine

    def edge(folder: Path, quick: bool) -> list[records.Row]:
        return serve_edge.edge_rows(serve_edge.digits_model(folder / "model"), 2 if quick else 10)

    def overload(folder: Path, quick: bool) -> list[records.Row]:
        return serve_edge.overload_rows(serve_engine.bench_model(folder / "model"), 5.0 if quick else 60.0)

    def counts(folder: Path, quick: bool) -> list[records.Row]:
        return asyncio.run(serve_engine.count_rows(serve_engine.bench_model(folder / "model"), 2 if quick else 10))

    def batching(folder: Path, quick: bool) -> list[records.Row]:
        return asyncio.run(serve_engine.batching_rows(serve_engine.bench_model(folder / "model"), 2 if quick else 5))

    def governor(folder: Path, quick: bool) -> list[records.Row]:
        model = serve_engine.bench_model(folder / "model")
        loads = (0.5,) if quick else (0.5, 0.7, 0.85, 2.0)
        return asyncio.run(serve_engine.governor_rows(model, 5.0 if quick else 20.0, loads))

    return {"edge": edge, "overload": overload, "counts": counts, "batching": batching, "governor": governor}[part]

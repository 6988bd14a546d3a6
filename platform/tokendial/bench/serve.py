"""`tokendial bench serve`: the endpoint against its floor and uvicorn, overload, batching, counts, and the governor.

Parts run one after another; within a part, targets take turns. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tokendial import environment
from tokendial.bench import parts, records

PARTS = {
    "edge": "digits: added time and requests/s on Ray Serve, against its empty handler and uvicorn",
    "haproxy": "the same behind Ray's HAProxy, which binds every interface, in a network namespace of its own",
    "overload": "bench model: ten times the capacity",
    "counts": "bench model: smallest against largest count at batch 32",
    "batching": "bench model: batched by count against one after another",
    "governor": "bench model: accepted requests over their target, governed and not",
}


def main(arguments: Sequence[str]) -> int:
    """Measure, print, keep, or show what was kept."""
    chosen = parts.parser("serve", __doc__, PARTS, "as few rounds as can be").parse_args(list(arguments))
    records.chosen_parts(chosen.only, PARTS)
    if chosen.show:
        return parts.show(chosen.out)
    environment.apply()

    def rows(part: str) -> list[records.Row]:
        with tempfile.TemporaryDirectory(prefix="tokendial-bench-") as folder:
            return _measure(part)(Path(folder), chosen.quick)

    return parts.measure(chosen, PARTS, rows)


def _measure(part: str) -> Callable[[Path, bool], list[records.Row]]:
    """A part's measurement as a function of an empty folder and of haste; torch and Ray are imported here."""
    from tokendial.bench import namespace, serve_edge, serve_engine, untrained

    def edge(folder: Path, quick: bool) -> list[records.Row]:
        return serve_edge.edge_rows(untrained.digits_model(folder / "model"), 2 if quick else 10)

    def haproxy(folder: Path, quick: bool) -> list[records.Row]:
        return namespace.haproxy_rows(untrained.digits_model(folder / "model"), 2 if quick else 10)

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

    return {
        "edge": edge, "haproxy": haproxy, "overload": overload, "counts": counts, "batching": batching,
        "governor": governor,
    }[part]  # fmt: skip

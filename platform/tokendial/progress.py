"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

Report = Callable[[Mapping[str, Any]], None]
LINE_EVERY_S = 5.0


@contextmanager
def progress_reporter(console: Console) -> Iterator[Report]:
    """A function that shows {"stage", "step", "total", "loss", "count", "tokens_per_second"} mappings as they come."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None, detail="")

        def show(latest: Mapping[str, Any]) -> None:
            bar.update(
                task,
                description=str(latest.get("stage", "")),
                completed=latest.get("step", 0),
                total=latest.get("total"),
                detail=detail(latest),
            )

        yield show


def detail(latest: Mapping[str, Any]) -> str:
    """The measures of a step, e.g. `loss 0.812 · count 144 · 12.3k tokens/s`, or as another process worded them."""
    if "detail" in latest:
        return str(latest["detail"])
    parts = [f"loss {latest['loss']:.3f}"] if "loss" in latest else []
    if "count" in latest:
        parts.append(f"count {latest['count']:g}")
    if "tokens_per_second" in latest:
        parts.append(f"{latest['tokens_per_second'] / 1000:.1f}k tokens/s")
    return " · ".join(parts)


def _lines(console: Console) -> Report:
    shown = {"at": -LINE_EVERY_S, "stage": None}

    def show(latest: Mapping[str, Any]) -> None:
        now, stage = time.monotonic(), latest.get("stage")
        done = latest.get("step", -1) == latest.get("total")
        if stage == shown["stage"] and now - shown["at"] < LINE_EVERY_S and not done:
            return
        shown.update(at=now, stage=stage)
        place = f" {latest['step']}/{latest['total']}" if "total" in latest else ""
        # A line that is broken in two is read back by nobody.
        console.print(f"{stage}{place} {detail(latest)}".rstrip(), highlight=False, soft_wrap=True)

    return show


_LINE = re.compile(r"(?P<stage>[a-z][\w. -]{0,40}?) (?P<step>\d+)/(?P<total>\d+)(?: (?P<detail>.+))?")


def read_line(text: str) -> Mapping[str, Any] | None:
    """What a plain progress line of another process says; None for any other line."""
    found = _LINE.fullmatch(text.rstrip())
    if found is None:
        return None
    place = {"stage": found["stage"], "step": int(found["step"]), "total": int(found["total"])}
    return {**place, "detail": found["detail"] or ""}

"""`tokendial status`, `logs` and `stop` by a run's name, wherever it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from tokendial.commands.shell import Json, app, console, failures
from tokendial.experiments import ConfigError

if TYPE_CHECKING:
    from tokendial.jobs import Standing

WATCH_S = 2.0
# Without TOKENDIAL_CLUSTER as its value: what runs here is found though that is set.
On = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="URL", help="Ask this Ray cluster; default the one it was sent to, or else TOKENDIAL_CLUSTER."
    ),
]


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(help="Run: name, id, `last` or a job; or a search; default all.")] = None,
    on: On = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it until interrupted.")] = False,
    json_: Json = False,
) -> None:
    """Show where runs and searches stand: stage, step, loss or best trial; here, and of a cluster's jobs."""
    with failures():
        from tokendial import api

        if watch and json_:
            raise ConfigError("--watch does not go with --json, which prints one object and ends")
        found = api.status(run, on)
        if watch:
            _watch(found, lambda: api.status(run, on))
        if json_:
            print(json.dumps([standing._asdict() for standing in found]))
        else:
            console.print(_table(found) if found else "no runs yet; `tokendial train --list` shows what can be trained")


@app.command()
def logs(
    run: Annotated[str, typer.Argument(help="Run: name, id, `last` or a job; or a search.")],
    rank: Annotated[int | None, typer.Option(help="Log of this training worker; default the driver's.", min=0)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep on to the end of the run's job.")] = False,
    on: On = None,
    json_: Json = False,
) -> None:
    """Print what a run's driver, one of its workers, or a search's driver and every trial of it said.

    Also after the cluster is gone, from the MLflow run.
    """
    with failures():
        from tokendial import api

        if follow:
            if rank is not None or json_:
                raise ConfigError("--follow goes without --rank and --json; it says the driver's lines as they come")
            api.follow(run, on)
            return
        found = api.logs(run, on, rank)
        name = "driver" if rank is None else f"rank-{rank}"
        if json_:
            print(json.dumps(found))
            return
        if name in found:
            print(found[name], end="")
        elif rank is None:
            print("\n".join(f"==> {part} <==\n{text}" for part, text in found.items()), end="")
        else:
            raise ConfigError(f"run {run!r} has no log {name!r}; it has {', '.join(found)}")


@app.command()
def stop(
    run: Annotated[str, typer.Argument(help="Run: name, id, `last` or a job; or a search.")],
    on: On = None,
    json_: Json = False,
) -> None:
    """Stop a run or search, here or on a cluster, so that the same command continues it from its last checkpoint."""
    with failures():
        from tokendial import api

        place = api.stop(run, on)
        print(json.dumps({"run": run, "place": place}) if json_ else f"told {run} to stop ({place})")


def _watch(found: list[Standing], ask: Callable[[], list[Standing]]) -> NoReturn:
    """Show where runs stand until interrupted; that a cluster does not answer is said above what it said last."""
    from tokendial.jobs.cluster import Unreachable

    with Live(_watched(found), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_S)
            try:
                found, away = ask(), ""
            except Unreachable as error:
                away = str(error)
            live.update(_watched(found, away), refresh=True)


def _watched(found: list[Standing], away: str = "") -> Group:
    """What is at work first, then the newest: a terminal that is too short shows the beginning."""
    rows = sorted(found, key=lambda row: (row.status not in ("PENDING", "RUNNING"), row.age_s))
    return Group(*filter(None, [away]), _table(rows))


def _table(found: list[Standing]) -> Table:
    table = Table("run", "place", "status", "step", "", "user", "age", box=None, pad_edge=False)
    for row in found:
        steps = f"{row.stage} {row.step}/{row.total}".strip() if row.total else ""
        note = row.error or row.detail
        table.add_row(row.run, row.place, row.status, steps, note, row.user, _age(row.age_s))
    return table


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"

"""`tokendial doctor` and `bench`: what this machine lacks, and how fast it is."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from tokendial.commands.shell import Json, app, console, failures


@app.command()
def doctor(json_: Json = False) -> None:
    """Check this machine: Python, compilers, packages, memory, DeepSpeed's build, ports, telemetry."""
    with failures():
        from tokendial.doctor import checks

        found = checks()
        if json_:
            print(json.dumps([check._asdict() for check in found]))
        else:
            table = Table("check", "", "finding", "what to do")
            for check in found:
                table.add_row(check.name, check.status, check.finding, check.advice)
            console.print(table)
        if any(check.status == "fail" for check in found):
            raise typer.Exit(1)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    part: Annotated[str | None, typer.Argument(help="What to measure: train, serve, search, jobs or kernels.")] = None,
    help_: Annotated[bool, typer.Option("--help", help="Show this message, or the options of PART.")] = False,
) -> None:
    """Measure this machine against stated floors and peers; rows go to benchmarks/. Options: `bench PART --help`."""
    if part is None:
        print(context.get_help())
        return
    with failures():
        from tokendial.bench import run

        raise typer.Exit(run(part, [*context.args, *(["--help"] if help_ else [])]))

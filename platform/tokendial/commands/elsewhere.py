"""`--on URL`, which sends a command to a Ray cluster instead of running it here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tokendial.commands.shell import console, print_result
from tokendial.progress import progress_reporter

if TYPE_CHECKING:
    from tokendial.jobs import Order

On = Annotated[
    str | None,
    typer.Option(
        "--on", envvar="TOKENDIAL_CLUSTER", metavar="URL", help="Ray cluster to send this to, e.g. http://head:8265."
    ),
]


def send_to(
    on: str, order: Order, json_: bool, show: Callable[[Mapping[str, Any]], None] | None = None, ready: bool = False
) -> None:
    """Send an order to the cluster at `on`, follow it, and print what it found as the command does here.

    `show` prints a result of another kind than a run's; `ready` follows a job that goes on only until its first result.
    An interrupt leaves the job running.
    """
    from tokendial import api

    output = console if not json_ else Console(stderr=True)

    def say(line: str) -> None:
        output.print(line, markup=False, highlight=False, soft_wrap=True)

    with progress_reporter(output) as progress:
        document = api.submit(on, order, progress=progress, say=say, ready=ready)
    if json_:
        print(json.dumps(document))
    elif show is not None:
        show(document)
    else:
        from tokendial.results import RunResult

        print_result(RunResult.model_validate(document), json_=False)

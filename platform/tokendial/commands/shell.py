"""What every command shares: the app, the console, errors as one sentence and an exit status, common options."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from tokendial.experiments import ConfigError

if TYPE_CHECKING:
    from tokendial.results import RunResult

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Vision-language models whose number of visual tokens is a dial: train, evaluate, export, report.",
)  # fmt: skip
# What users and other libraries wrote is shown as they wrote it.
console = Console(markup=False, emoji=False)
WHERE = "pip install 'tokendial[train,search,serve]' here, or give --on URL of a cluster that has it"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides and section presets: schedule=mqt seed=7."),
]


@contextmanager
def failures() -> Iterator[None]:
    """Turn errors into one sentence on stderr and an exit status."""
    from tokendial.failures import Terminated, WorkFailed

    try:
        yield
    except ConfigError as error:
        stop_with(2, error)
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("tokendial"):
            raise
        stop_with(2, f"this needs the package {error.name!r}, which the base install lacks; {WHERE}")
    except (WorkFailed, OSError, MemoryError) as error:
        stop_with(1, error)
    except KeyboardInterrupt:
        stop_with(130, "interrupted; the same command continues the run")
    except Terminated:
        stop_with(143, "stopped; the same command continues the run")


def stop_with(code: int, message: object) -> NoReturn:
    """Say `message` on stderr and exit with `code`."""
    print(f"tokendial: {message}", file=sys.stderr)
    raise typer.Exit(code)


def integers(option: str, text: str) -> tuple[int, ...]:
    """The distinct counts or seeds of an option's value, ascending; raises ConfigError."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text!r} must be whole numbers separated by commas, e.g. 1,4,16") from None
    if any(value < 0 for value in values) or len(set(values)) != len(values):
        raise ConfigError(f"{option} {text!r} must be distinct and not negative")
    return tuple(sorted(values))


def print_result(result: RunResult, json_: bool) -> None:
    """A result as tables, or as the one JSON line."""
    if json_:
        print(result.to_line())
        return
    from tokendial import report

    report.print_result(result, console)


def program(name: str) -> str:
    """What to type for a console script of this installation: its name where the shell finds it, else its path."""
    beside = Path(sys.executable).parent / name
    return name if shutil.which(name) or not beside.exists() else shlex.quote(relative(str(beside)))


def relative(path: str) -> str:
    inside = os.path.relpath(path)
    return path if inside.startswith("..") else inside

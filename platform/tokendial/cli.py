"""The `tokendial` command: thin typed functions over `tokendial.api`. Bad input exits 2, failed work exits 1."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from tokendial import environment, machine
from tokendial.experiments import ConfigError
from tokendial.progress import progress_reporter

if TYPE_CHECKING:
    from tokendial.results import RunResult

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Vision-language models whose number of visual tokens is a dial: train, evaluate, export, report.",
)  # fmt: skip
console = Console()

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides and section presets: schedule=mqt seed=7."),
]


def main() -> None:
    """Entry of the console script."""
    environment.apply()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Experiments of one's own, `module:function`, are looked for in the working folder too.
    sys.path.append(os.getcwd())
    app()


@contextmanager
def failures() -> Iterator[None]:
    """Turn errors into one sentence on stderr and an exit status."""
    from tokendial.failures import Terminated, WorkFailed

    try:
        yield
    except ConfigError as error:
        _stop(2, error)
    except (WorkFailed, OSError, MemoryError) as error:
        _stop(1, error)
    except KeyboardInterrupt:
        _stop(130, "interrupted; the same command continues the run")
    except Terminated:
        _stop(143, "stopped; the same command continues the run")


def _stop(code: int, message: object) -> NoReturn:
    print(f"tokendial: {message}", file=sys.stderr)
    raise typer.Exit(code)


@app.command(add_help_option=False)
def train(
    experiment: Annotated[str | None, typer.Argument(help="Experiment: a name of --list, or module:function.")] = None,
    overrides: Overrides = None,
    list_: Annotated[bool, typer.Option("--list", help="List experiments and schedules, a line each.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved configuration, check the data, forecast the run.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Resolved configuration (config.json of a run) to rerun.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default user.experiment.hash.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Start another run even if this one exists.")] = False,
    source: Annotated[str | None, typer.Option("--from", help="Start from the weights of this run.")] = None,
    json_: Json = False,
    help_: Annotated[bool, typer.Option("--help", help="Show this message, and every key of EXPERIMENT.")] = False,
) -> None:
    """Train a token-flexible model, draw its token curve, export it.

    The same command continues an unfinished run and prints the result of a finished one.
    """
    with failures():
        from tokendial import api
        from tokendial.resolve import resolve

        if list_:
            return _print_list(json_)
        if help_ or (experiment is None and config is None):
            return _print_train_help(experiment)
        if experiment is not None and "=" in experiment:
            experiment, overrides = None, [experiment, *(overrides or [])]
        resolved = resolve(experiment, overrides or (), config, None if dry_run else machine.cpus())
        if dry_run:
            return _print_forecast(api.forecast(resolved), json_)
        with progress_reporter(console if not json_ else Console(stderr=True)) as progress:
            result = api.train(resolved, name=name, new=new, source=source, progress=progress)
        _print_result(result, json_)
        if not json_:
            _print_next(result)
    return None


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Run (id, name, `last`) or exported model folder.")],
    counts: Annotated[str | None, typer.Option(help="Counts to score, e.g. 1,4,9,16; default the run's grid.")] = None,
    split: Annotated[str | None, typer.Option(help="Split: test or validation; default the run's.")] = None,
    examples: Annotated[int | None, typer.Option(help="Examples scored; default the run's.", min=1)] = None,
    twins: Annotated[
        str | None, typer.Option(help="Train the fixed-count twins too: `steps` (same steps) or `flops` (same FLOPs).")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds of the twins and of the flexible runs beside them; default 0.")
    ] = None,
    json_: Json = False,
) -> None:
    """Score a model at every count of a grid, trained or not; with --twins, fill the trained-at × served-at matrix."""
    with failures():
        from tokendial import api

        with progress_reporter(console if not json_ else Console(stderr=True)) as progress:
            if twins is not None:
                _refuse_beside("--twins", {"--counts": counts, "--split": split, "--examples": examples})
                wanted = (0,) if seeds is None else _integers("--seeds", seeds)
                result = api.twins(model, kind=twins, seeds=wanted, progress=progress)
            else:
                if seeds is not None:
                    raise ConfigError("--seeds goes with --twins only; a model is scored as it is")
                wanted = None if counts is None else _integers("--counts", counts)
                result = api.evaluate(model, counts=wanted, split=split, examples=examples, progress=progress)
        _print_result(result, json_)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Runs: ids, names or `last`; several are compared.")],
    json_: Json = False,
) -> None:
    """Show a finished run again: curve, ledger, figures; or compare several in one HTML file."""
    with failures():
        from tokendial import api

        results = api.report(runs)
        if json_:
            if len(results) == 1:
                print(results[0].to_line())
            else:
                print(json.dumps({"runs": [result.model_dump(mode="json") for result in results]}))
            return
        for result in results:
            _print_result(result, json_=False)
        if len(results) > 1:
            console.print(f"comparison: {api.comparison(results)}")


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Run: id, name or `last`.")],
    to: Annotated[Path, typer.Option(help="Folder to write; must be empty or absent.")],
    json_: Json = False,
) -> None:
    """Copy a run's Hugging Face model folder, verified against its digests."""
    with failures():
        from tokendial import api

        folder = api.export(run, to)
        print(json.dumps({"model_dir": str(folder)}) if json_ else f"wrote {folder}")


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
    part: Annotated[str | None, typer.Argument(help="What to measure: train or kernels.")] = None,
    help_: Annotated[bool, typer.Option("--help", help="Show this message, or the options of PART.")] = False,
) -> None:
    """Measure this machine against stated floors and peers; rows go to benchmarks/. Options: `bench PART --help`."""
    if part is None:
        print(context.get_help())
        return
    with failures():
        from tokendial.bench import run

        raise typer.Exit(run(part, [*context.args, *(["--help"] if help_ else [])]))


def _refuse_beside(option: str, others: dict[str, object]) -> None:
    given = ", ".join(name for name, value in others.items() if value is not None)
    if given:
        raise ConfigError(f"{given} does not go with {option}, which scores every run as its configuration says")


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text!r} must be whole numbers separated by commas, e.g. 1,4,16") from None
    if any(value < 0 for value in values) or len(set(values)) != len(values):
        raise ConfigError(f"{option} {text!r} must be distinct and not negative")
    return tuple(sorted(values))


def _print_list(json_: bool) -> None:
    from tokendial.experiments import experiment, experiment_names
    from tokendial.schedule import PRESETS

    rows: list[dict[str, str]] = []
    for name in experiment_names():
        try:
            config = experiment(name)
        except ConfigError as error:
            rows.append({"experiment": name, "workload": "", "schedule": "", "what it is": str(error)})
            continue
        shown = {"workload": config.workload, "schedule": config.schedule.preset, "what it is": config.description}
        rows.append({"experiment": name, **shown})
    schedules = [{"schedule": name, "what it does": preset.summary} for name, preset in PRESETS.items()]
    if json_:
        print(json.dumps({"experiments": rows, "schedules": schedules}))
        return
    for number, lines in enumerate((rows, schedules)):
        table = Table(*lines[0], box=None, pad_edge=False)
        for line in lines:
            table.add_row(*line.values())
        if number:
            print()
        _wide().print(table)


def _wide() -> Console:
    """As wide as the terminal; elsewhere wide enough that a row is a line."""
    return console if console.is_terminal else Console(width=1000, markup=False)


def _print_train_help(experiment: str | None) -> None:
    from tokendial.resolve import experiment as load
    from tokendial.resolve import keys

    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    context = typer.Context(command, info_name="tokendial train")
    print(command.get_help(context))
    if experiment is None:
        print("\nEvery key of an experiment: tokendial train EXPERIMENT --help")
        return
    table = Table("key", "type", "default", "meaning", box=None, pad_edge=False)
    for key, (kind, value, meaning) in keys(load(experiment)).items():
        table.add_row(key, kind, _short(value), meaning)
    Console(width=max(console.width, 140), markup=False).print(table)


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _print_forecast(forecast: dict[str, Any], json_: bool) -> None:
    if json_:
        print(json.dumps(forecast))
        return
    console.print_json(json.dumps(forecast["config"]))
    table = Table("forecast", "", box=None, pad_edge=False)
    for name, value in forecast.items():
        if name != "config":
            table.add_row(name, json.dumps(value) if isinstance(value, dict | list) else str(value))
    console.print(table)


def _print_result(result: RunResult, json_: bool) -> None:
    if json_:
        print(result.to_line())
        return
    from tokendial.report import print_result

    print_result(result, console)


def _print_next(result: RunResult) -> None:
    from tokendial.runs import find

    uri = find(result.name).record.tracking_uri
    counts = ",".join(map(str, sorted(result.curve)))
    lines = {
        **{name: _relative(path) for name, path in result.figures.items()},
        "model": _relative(result.model_dir or ""),
        "compare runs": f"{_command('mlflow')} ui --backend-store-uri {shlex.quote(str(uri))}",
        "next": f"{_command('tokendial')} eval {result.name} --counts {counts}",
    }
    console.print()
    for name, text in lines.items():
        console.print(f"{name + ':':<15}{text}", soft_wrap=True, highlight=False)


def _command(name: str) -> str:
    """What to type for a console script of this installation: its name where the shell finds it, else its path."""
    beside = Path(sys.executable).parent / name
    return name if shutil.which(name) or not beside.exists() else shlex.quote(_relative(str(beside)))


def _relative(path: str) -> str:
    inside = os.path.relpath(path)
    return path if inside.startswith("..") else inside


if __name__ == "__main__":
    main()

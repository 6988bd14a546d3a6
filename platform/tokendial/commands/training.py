"""`tokendial train`: forecast, train, and say where to look and what to type next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tokendial import machine
from tokendial.commands.elsewhere import On, send_to
from tokendial.commands.shell import Json, Overrides, app, console, failures, print_result, program, relative
from tokendial.experiments import ConfigError
from tokendial.progress import progress_reporter

if TYPE_CHECKING:
    from tokendial.results import RunResult


@app.command(add_help_option=False)
def train(
    context: typer.Context,
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
    on: On = None,
    json_: Json = False,
    help_: Annotated[bool, typer.Option("--help", help="Show this message, and every key of EXPERIMENT.")] = False,
) -> None:
    """Train a token-flexible model, draw its token curve, export it.

    The same command continues an unfinished run and prints the result of a finished one.
    """
    with failures():
        from tokendial import api
        from tokendial.identity import user_name
        from tokendial.jobs import training_order
        from tokendial.resolve import resolve
        from tokendial.runs import parent_of
        from tokendial.train.driver import find_place, with_horizon

        if list_ and not help_:
            _refuse_beside_list(context)
            return _print_list(json_)
        if help_ or (experiment is None and config is None):
            return _print_train_help(experiment)
        if experiment is not None and "=" in experiment:
            experiment, overrides = None, [experiment, *(overrides or [])]
        # A run is trained again from what it was trained from.
        source = source or (parent_of(config) if config else None)
        cpus = None if dry_run or on else machine.cpus()
        resolved = resolve(experiment, overrides or (), config, cpus, elsewhere=on is not None)
        if dry_run:
            if not on:
                find_place(with_horizon(resolved), user_name(), name, new, source)
            return _print_forecast(api.forecast(resolved), json_)
        if on:
            return send_to(on, training_order(resolved, name, new, source), json_)
        with progress_reporter(console if not json_ else Console(stderr=True)) as progress:
            result = api.train(resolved, name=name, new=new, source=source, progress=progress)
        print_result(result, json_)
        if not json_:
            _print_next(result)
    return None


def _refuse_beside_list(context: typer.Context) -> None:
    """What else is typed would have no effect; a cluster that the environment names stays out of it."""
    given: list[str] = []
    for param in context.command.params:
        source, value = context.get_parameter_source(str(param.name)), context.params[str(param.name)]
        if source is None or source.name != "COMMANDLINE" or param.name in ("list_", "json_"):
            continue
        given += value if isinstance(value, list) else [param.opts[0] if param.opts[0].startswith("-") else value]
    if given:
        raise ConfigError(f"--list shows all there is and goes with --json only; leave out {', '.join(given)}")


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
    from tokendial.dotted import keys
    from tokendial.resolve import experiment as load

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


def _print_next(result: RunResult) -> None:
    from tokendial.runs import find

    uri = find(result.name).record.tracking_uri
    counts = ",".join(map(str, sorted(result.curve)))
    lines = {
        **{name: relative(path) for name, path in result.figures.items()},
        "model": relative(result.model_dir or ""),
        "compare runs": f"{program('mlflow')} ui --backend-store-uri {shlex.quote(str(uri))}",
        "next": f"{program('tokendial')} eval {result.name} --counts {counts}",
    }
    console.print()
    for name, text in lines.items():
        console.print(f"{name + ':':<15}{text}", soft_wrap=True, highlight=False)

"""`tokendial eval`, `report` and `export`: what a run or model folder is worth, shown again, and taken away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tokendial.commands.elsewhere import On, send_to
from tokendial.commands.search import print_search
from tokendial.commands.shell import Json, app, console, failures, integers, print_result, relative
from tokendial.experiments import ConfigError
from tokendial.progress import progress_reporter

if TYPE_CHECKING:
    from tokendial.search.found import SearchResult


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
    on: On = None,
    json_: Json = False,
) -> None:
    """Score a model at every count of a grid, trained or not; with --twins, fill the trained-at × served-at matrix."""
    with failures():
        from tokendial import api

        if on:
            from tokendial.jobs import evaluation_order

            options = {"counts": counts, "split": split, "examples": examples, "twins": twins, "seeds": seeds}
            return send_to(on, evaluation_order(model, options), json_)
        with progress_reporter(console if not json_ else Console(stderr=True)) as progress:
            if twins is not None:
                _refuse_beside("--twins", {"--counts": counts, "--split": split, "--examples": examples})
                wanted = (0,) if seeds is None else integers("--seeds", seeds)
                result = api.twins(model, kind=twins, seeds=wanted, progress=progress)
            else:
                if seeds is not None:
                    raise ConfigError("--seeds goes with --twins only; a model is scored as it is")
                wanted = None if counts is None else integers("--counts", counts)
                result = api.evaluate(model, counts=wanted, split=split, examples=examples, progress=progress)
        print_result(result, json_)
    return None


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(help="Runs: ids, names or `last`; several are compared. Or one search, by its name.")
    ],
    json_: Json = False,
) -> None:
    """Show a finished run or search again: curves, ledger, figures; or compare several runs in one HTML file."""
    with failures():
        from tokendial import api
        from tokendial.report import print_comparison
        from tokendial.search.found import find_search, read_found

        if len(runs) == 1 and find_search(runs[0]):
            return print_search(read_found(runs[0]), json_)
        for search in filter(find_search, runs):
            _refuse_compared(read_found(search), runs)
        results = api.report(runs)
        _refuse_repeated([result.name for result in results])
        if json_:
            if len(results) == 1:
                print(results[0].to_line())
            else:
                print(json.dumps({"runs": [result.model_dump(mode="json") for result in results]}))
            return None
        page = _compared(runs) if len(results) > 1 else None
        for result in results:
            print_result(result, json_=False)
            for name, path in result.figures.items():
                console.print(f"{name + ':':<15}{relative(path)}", soft_wrap=True, highlight=False)
        if page is not None:
            print_comparison(results, console)
            console.print(f"comparison: {page}")
    return None


def _compared(runs: list[str]) -> Path:
    from tokendial import api

    try:
        return api.comparison(runs)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _refuse_compared(search: SearchResult, among: list[str]) -> None:
    """A search is many runs; which of them is meant has to be said."""
    best = None if search.best is None else search.row(search.best).run
    words = [best if best and name == search.name else name for name in among]
    advice = f"its best trial is: tokendial report {' '.join(words)}" if best else "none of its trials finished"
    raise ConfigError(f"search {search.name!r} is many runs and is not compared with others; {advice}")


def _refuse_repeated(names: list[str]) -> None:
    """A run beside itself would be counted as two seeds of one group."""
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ConfigError(f"run {repeated[0]!r} is given more than once; give each run once")


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


def _refuse_beside(option: str, others: dict[str, object]) -> None:
    given = ", ".join(name for name, value in others.items() if value is not None)
    if given:
        raise ConfigError(f"{given} does not go with {option}, which scores every run as its configuration says")

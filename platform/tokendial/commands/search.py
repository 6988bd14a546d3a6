"""`tokendial search` and `promote`: find the schedule, and make a model the one that is served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from tokendial.commands.shell import Json, app, console, failures, relative
from tokendial.progress import progress_reporter

if TYPE_CHECKING:
    from tokendial.search.found import SearchResult


@app.command()
def search(
    experiment: Annotated[str, typer.Argument(help="Experiment: a name of `train --list`, or module:function.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE[,VALUE]...]...",
            help="Overrides of every trial; lists are searched: schedule=tokenflex,m3 seed=0,1,2.",
        ),
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option(help="grid, random, optuna or asha; default grid for lists, else asha.")
    ] = None,
    objectives: Annotated[
        str, typer.Option(help="What is searched for: autc or hypervolume, then perhaps cost: autc,cost.")
    ] = "autc",
    trials: Annotated[int | None, typer.Option(help="Trials in all; default 16.", min=1)] = None,
    space: Annotated[
        str | None, typer.Option(help="Your own space: my_space.py:function, dotted path → domain.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Of the whole search: 2e14 (FLOPs), 30min, 2h, 1.5gpuh; default the experiment's, per trial."
        ),
    ] = None,
    per_trial: Annotated[bool, typer.Option("--per-trial", help="--budget is for each trial.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the search itself.", min=0)] = 0,
    limit: Annotated[float, typer.Option(help="Seconds without progress after which a trial has failed.")] = 600.0,
    name: Annotated[str | None, typer.Option(help="Name of the search; default user.experiment.search-hash.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Start another search even if this one exists.")] = False,
    json_: Json = False,
) -> None:
    """Search for the token schedule (or anything else) at equal compute.

    Every trial gets the same FLOPs and is scored on validation at the same counts; trials start from one shared warm
    tower where the experiment has a stage for it. The same command continues a search that was interrupted and prints
    the result of a finished one; with more --trials it goes on. `tokendial report NAME` shows it again,
    `tokendial promote NAME` makes its best model the champion.
    """
    with failures():
        from tokendial import api

        with progress_reporter(console if not json_ else Console(stderr=True)) as progress:
            progress({"stage": "planning"})
            result = api.search(
                experiment,
                overrides or (),
                algorithm=algorithm,
                objectives=tuple(part.strip() for part in objectives.split(",")),
                trials=trials,
                space=space,
                budget=budget,
                per_trial=per_trial,
                seed=seed,
                limit_s=limit,
                name=name,
                new=new,
                progress=progress,
            )
        print_search(result, json_)


def print_search(result: SearchResult, json_: bool) -> None:
    """A search as tables, or as the one JSON line."""
    if json_:
        print(result.model_dump_json())
        return
    best = result.row(result.best) if result.best is not None else None
    console.print(_groups(result))
    failed = [row for row in result.trials if row.outcome.status == "FAILED"]
    for row in failed:
        console.print(f"trial {row.number} failed: {row.outcome.cause}", highlight=False, soft_wrap=True)
    pruned = sum(row.outcome.status == "PRUNED" for row in result.trials)
    finished = len(result.trials) - pruned - len(failed)
    console.print(
        f"{finished} trials finished, {pruned} pruned, {len(failed)} failed; {result.flops_per_trial:.3g} FLOPs each "
        f"(within {100 * result.accounting:.2f} %), {result.flops:.3g} in all, {result.tower_flops:.3g} for the tower",
        highlight=False,
        soft_wrap=True,
    )
    if best is not None:
        console.print(f"best: trial {best.number}, run {best.run}", highlight=False, soft_wrap=True)
        if result.report:
            console.print(f"report: {relative(result.report)}", highlight=False, soft_wrap=True)
        console.print(f"next: tokendial promote {result.name} --dry-run", highlight=False, soft_wrap=True)


def _groups(result: SearchResult) -> Table:
    """Groups over seeds, best first."""
    more = [name for name in result.objectives if name != "autc"]
    table = Table(
        "what", "trials", "seeds", "AUTC", "95 % interval", "behind the best", *more, box=None, pad_edge=False
    )
    for group in result.groups:
        gap = group.behind
        behind = "" if gap is None else f"{gap.mean:.4f} ({gap.ci[0]:+.4f} to {gap.ci[1]:+.4f})"
        trials, seeds = (",".join(map(str, numbers)) for numbers in (group.trials, group.seeds))
        interval = f"{group.autc_ci[0]:.4f} to {group.autc_ci[1]:.4f}"
        values = [f"{group.values[name]:.4g}" for name in more]
        table.add_row(group.label, trials, seeds, f"{group.autc:.4f}", interval, behind, *values)
    return table

"""`tokendial search` and `promote`: find the schedule, and make a model the one that is served."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from tokendial.commands.elsewhere import On, send_to
from tokendial.commands.shell import Json, app, console, failures, relative
from tokendial.experiments import ConfigError
from tokendial.progress import progress_reporter

if TYPE_CHECKING:
    from tokendial.jobs import Order
    from tokendial.promote import Promotion
    from tokendial.search.found import SearchResult

MOST_ROWS, MOST_CHARS = 12, 60


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
    trials: Annotated[
        int | None,
        typer.Option(help="Trials in all; default 16, or the whole grid. No more than have ended end it there.", min=1),
    ] = None,
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
    limit: Annotated[
        float, typer.Option(help="Seconds without progress, once it has workers, after which a trial failed.", min=1)
    ] = 600.0,
    at_once: Annotated[
        int | None, typer.Option(help="Trials at work at once, at most; default as many as fit.", min=1)
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run the trials that failed again.")] = False,
    name: Annotated[str | None, typer.Option(help="Name of the search; default user.experiment.search-hash.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Start another search even if this one exists.")] = False,
    on: On = None,
    json_: Json = False,
) -> None:
    """Search for the token schedule (or anything else) at equal compute.

    Every trial gets the same FLOPs and is scored on validation at the same counts; trials start from one shared warm
    tower where the experiment has a stage for it. The same command continues a search that was interrupted and prints
    the result of a finished one; with more --trials it goes on, with no more than have ended it is concluded.
    `tokendial report NAME` shows it again, `tokendial promote NAME` makes its best model the champion.
    """
    with failures():
        from tokendial import api
        from tokendial.jobs import search_order

        if on:
            options = {
                "algorithm": algorithm, "objectives": objectives, "trials": trials, "budget": budget,
                "per-trial": per_trial, "seed": seed, "limit": limit, "at-once": at_once, "retry": retry, "new": new,
            }  # fmt: skip
            return _search_on(on, search_order(experiment, overrides or (), options, name, space), json_)
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
                at_once=at_once,
                retry=retry,
                name=name,
                new=new,
                progress=progress,
            )
        print_search(result, json_)
    return None


def _search_on(on: str, order: Order, json_: bool) -> None:
    from tokendial.search.found import SearchResult

    send_to(on, order, json_, lambda document: print_search(SearchResult.model_validate(document), json_=False, on=on))


def print_search(result: SearchResult, json_: bool, on: str | None = None) -> None:
    """A search as tables, or as the one JSON line; `on` is the cluster that has its runs, if this machine has not."""
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
    if result.utilisation is not None and result.overhead_s is not None:
        console.print(
            f"{result.wall_seconds:.0f} s, of which {result.utilisation:.0%} in optimizer steps; starting, scoring and "
            f"recording a trial took {result.overhead_s:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
    if result.exhausted:
        console.print(f"{len(result.trials)} trials are all: {result.exhausted}", highlight=False, soft_wrap=True)
    if len(result.objectives) > 1 and result.front:
        front = ", ".join(map(str, result.front))
        console.print(f"Pareto front over {' and '.join(result.objectives)}: {front}", highlight=False)
    if best is not None:
        console.print(f"best: trial {best.number}, run {best.run}", highlight=False, soft_wrap=True)
        if result.report:
            console.print(f"report: {relative(result.report)}", highlight=False, soft_wrap=True)
        # What promotes a model reads its run's folder, so that is done where the folder is.
        what = f"promote {result.name} --dry-run" if on is None else f"serve --model {best.run} --on {on}"
        console.print(f"next: tokendial {what}", highlight=False, soft_wrap=True)


def _groups(result: SearchResult) -> Table:
    """Groups over seeds, best first."""
    more = [name for name in result.objectives if name != "autc"]
    table = Table(
        "what", "trials", "seeds", "AUTC", "95 % interval", "behind the best", *more, box=None, pad_edge=False
    )
    for group in result.groups[:MOST_ROWS]:
        gap = group.behind
        behind = "" if gap is None else f"{gap.mean:.4f} ({gap.ci[0]:+.4f} to {gap.ci[1]:+.4f})"
        trials = ",".join(map(str, group.trials))
        interval = f"{group.autc_ci[0]:.4f} to {group.autc_ci[1]:.4f}"
        values = [f"{group.values[name]:.4g}" for name in more]
        name = group.label if len(group.label) <= MOST_CHARS else f"{group.label[: MOST_CHARS - 1]}…"
        table.add_row(name, trials, group.seeds_told, f"{group.autc:.4f}", interval, behind, *values)
    return table


@app.command()
def promote(
    reference: Annotated[
        str, typer.Argument(metavar="NAME", help="Search or run to promote; with --rollback a registered model.")
    ],
    trial: Annotated[int | None, typer.Option(help="Trial of the search; default its best.", min=0)] = None,
    model: Annotated[str | None, typer.Option(help="Registered model; default the workload's name.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Promote even if it is worse than the champion.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, score and compare; register nothing.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Move the champion back to the one before.")] = False,
    tracking: Annotated[
        str | None,
        typer.Option("--tracking-uri", help="With --rollback, MLflow server of the registry; a run knows its own."),
    ] = None,
    json_: Json = False,
) -> None:
    """Make a model the champion that endpoints serve.

    Its validation is checked against its record, its test curve scored once and shown beside the champion's; a worse
    one is refused without --force. Latency per count goes into its ladder, and its files are registered with their
    SHA-256. Who moved the champion, when and from where is recorded.
    """
    with failures():
        from tokendial import api

        if rollback:
            if trial is not None or model or force or dry_run:
                raise ConfigError("--rollback goes alone: tokendial promote MODEL --rollback")
            before, after = api.rollback(reference, tracking)
            found = {"model": reference, "before": before, "version": after}
            print(json.dumps(found) if json_ else f"champion of {reference}: version {after}, before it {before}")
            return
        if tracking is not None:
            raise ConfigError("--tracking-uri goes with --rollback; a run is registered where it was tracked")
        with progress_reporter(console if not json_ else Console(stderr=True)) as progress:
            promotion = api.promote(
                reference, trial=trial, model=model, force=force, dry_run=dry_run, progress=progress
            )
        if json_:
            print(json.dumps(asdict(promotion)))
        else:
            _print_promotion(promotion)


def _print_promotion(promotion: Promotion) -> None:
    champion = promotion.champion
    columns = ["tokens", f"{promotion.metric} on test", "champion", "latency ms"]
    table = Table(*columns, box=None, pad_edge=False)
    for count, point in sorted(promotion.curve.items()):
        beside = f"{champion.curve[count]:.4f}" if champion and count in champion.curve else ""
        table.add_row(str(count), f"{point.quality:.4f}", beside, f"{promotion.latency.ms[count]:.2f}")
    beside = f"{champion.autc:.4f}" if champion else ""
    table.add_row("AUTC", f"{promotion.autc:.4f}", beside, "")
    console.print(table)
    answers, device = promotion.latency.batch, promotion.latency.device
    console.print(f"latency: {answers} answers to one image, alone, on {device}", highlight=False, soft_wrap=True)
    if promotion.is_champion:
        console.print(
            f"version {promotion.version} is the champion of {promotion.model} already; nothing was moved",
            highlight=False,
        )
        return
    if promotion.version is None:
        refused = "" if promotion.better else "; it would be refused without --force"
        console.print(f"nothing was registered (--dry-run){refused}")
        return
    before = f", before it version {promotion.before}" if promotion.before else ""
    console.print(f"champion of {promotion.model}: version {promotion.version}{before}", highlight=False)

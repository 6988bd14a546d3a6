"""Fixed-count twins of a flexible run over seeds: trained side by side, scored on the same items, put in one matrix."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokendial.contracts import BudgetConfig, RunConfig
from tokendial.curve import ItemScores, regret, served_matrix
from tokendial.experiments import ConfigError, workload
from tokendial.failures import Terminated, WorkFailed
from tokendial.resolve import from_document
from tokendial.results import RunResult, write_result
from tokendial.runs import Run, find
from tokendial.schedule import preset
from tokendial.scores import Scores
from tokendial.train.driver import learn_id, sigterm_raises, train, with_horizon
from tokendial.train.horizon import run_cost
from tokendial.train.room import slots

Progress = Callable[[Mapping[str, Any]], None]
KINDS = ("steps", "flops")
# Count (None: the flexible run) and seed.
Key = tuple[int | None, int]


def twins(run: Run, kind: str, seeds: Sequence[int], progress: Progress) -> RunResult:
    """Train what is missing of (flexible, twin at each count) × seeds and put regret and matrix into the run's result.

    `steps` twins take the steps and data of the flexible run of their seed; `flops` twins spend its whole FLOPs at
    their one count.
    """
    if kind not in KINDS:
        raise ConfigError(f"--twins {kind!r} is not one of {', '.join(KINDS)}")
    base = from_document(run.config_document())
    result = run.read_result()
    _refuse_seconds(run, base)
    _refuse_unscored(run, base, result)
    budgets = {seed: twin_budget(base, seed, kind, result) for seed in seeds}
    configs = {
        (count, seed): _config(base, count, seed, budget)
        for seed, budget in budgets.items()
        for count in (None, *result.trained_counts)
    }
    missing = {key: config for key, config in configs.items() if key != (None, base.seed)}
    with sigterm_raises():
        done = _train_all(missing, run, base, progress)
        scores = {key: _scores(find(name)) for key, name in done.items()}
        if base.seed in seeds:
            scores[None, base.seed] = _scores(run)
        with run.lease():
            return _recorded(run, kind, seeds, scores)


def _refuse_unscored(run: Run, base: RunConfig[Any], result: RunResult) -> None:
    """Twins meet the flexible run at each trained count, so each must have been scored."""
    unscored = [count for count in result.trained_counts if count not in base.evaluation.counts]
    if unscored:
        raise ConfigError(
            f"run {run.name!r} was trained at {unscored} but not scored there; twins need every trained count in "
            f"evaluation.counts, which is {list(base.evaluation.counts)}: train it again with those too"
        )


def _refuse_seconds(run: Run, base: RunConfig[Any]) -> None:
    """A clock ends each run at another step, and mostly before its schedule and learning rate have run their course."""
    if base.budget.seconds is not None:
        raise ConfigError(
            f"run {run.name!r} is bounded by budget.seconds {base.budget.seconds:g}, which gives no two runs the same "
            "steps or FLOPs; train it by budget.steps or budget.flops to hold twins against it"
        )


def twin_budget(base: RunConfig[Any], seed: int, kind: str, flexible: RunResult) -> BudgetConfig:
    """What twins of a seed share with the flexible run of that seed; the draws of another seed are simulated."""
    if seed == base.seed:
        steps, flops = flexible.steps, flexible.flops
    else:
        other = with_horizon(base.model_copy(update={"seed": seed}))
        steps = other.budget.horizon or 0
        flops = run_cost(other, workload(other.workload).cost(other), steps).flops if kind == "flops" else 0.0
    return BudgetConfig(steps=steps) if kind == "steps" else BudgetConfig(flops=flops)


def _config(base: RunConfig[Any], count: int | None, seed: int, budget: BudgetConfig) -> RunConfig[Any]:
    """The configuration of one twin; count None is the flexible run itself under another seed."""
    if count is None:
        return base.model_copy(update={"seed": seed})
    return base.model_copy(update={"seed": seed, "schedule": preset("fixed", (count,)), "budget": budget})


def _train_all(
    configs: Mapping[Key, RunConfig[Any]], flexible: Run, base: RunConfig[Any], progress: Progress
) -> dict[Key, str]:
    """Names of the runs, trained as many at once as the cluster has room for; told to stop, all end as KILLED."""
    from tokendial.train import ray_trainer

    ray_trainer.connect()
    at_once = slots(base, ray_trainer.cluster_room())
    board, stop = _Board(len(configs), progress), threading.Event()
    with ThreadPoolExecutor(at_once) as pool:
        ordered = sorted(configs.items(), key=_large_first)
        tasks = {key: pool.submit(_one, config, flexible, board, key, stop) for key, config in ordered}
        try:
            wait(tasks.values())
        except (KeyboardInterrupt, Terminated):
            stop.set()
            for task in tasks.values():
                task.cancel()
            raise
    failed = {key: error for key, task in tasks.items() if (error := task.exception()) is not None}
    if failed:
        key, error = next(iter(failed.items()))
        raise WorkFailed(f"{len(failed)} of {len(configs)} runs failed; first {_label(key)}: {error}") from error
    return {key: task.result() for key, task in tasks.items()}


def _large_first(item: tuple[Key, RunConfig[Any]]) -> tuple[int, int]:
    """Long runs first, so that none is left to run alone at the end."""
    (count, seed), config = item
    return (-(count or config.schedule.counts[-1]), seed)


def _one(config: RunConfig[Any], flexible: Run, board: _Board, key: Key, stop: threading.Event) -> str:
    with board.running(_label(key)) as show:
        source, twin_of = flexible.record.parent, flexible.name
        return train(
            config, name=None, new=False, source=source, progress=show, twin_of=twin_of, stop=stop
        ).name  # fmt: skip


def _label(key: Key) -> str:
    count, seed = key
    return f"{'flexible' if count is None else f'twin@{count}'} seed {seed}"


class _Board:
    """Progress of several runs as one line: how many are done, and where those in progress are."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._progress = total, progress
        self._done = 0
        self._lock = threading.Lock()
        self._places: dict[str, str] = {}

    @contextmanager
    def running(self, label: str) -> Iterator[Progress]:
        def show(latest: Mapping[str, Any]) -> None:
            with self._lock:
                place = f"{latest['step']}/{latest['total']}" if "total" in latest else latest.get("stage", "")
                self._places[label] = f"{label} {place}"
                self._show()

        yield show
        with self._lock:
            self._done += 1
            self._places.pop(label, None)
            self._show()

    def _show(self) -> None:
        stage = "twins: " + ", ".join(self._places.values())
        self._progress({"stage": stage, "step": self._done, "total": self._total})


def _recorded(run: Run, kind: str, seeds: Sequence[int], scores: Mapping[Key, ItemScores]) -> RunResult:
    from tokendial.report import curve_html, curve_png, matrix_html, matrix_png
    from tokendial.tracking.finish import finish

    flexible = {seed: scores[None, seed] for seed in seeds}
    counts = sorted({count for count, _ in scores if count is not None})
    fixed = {count: {seed: scores[count, seed] for seed in seeds} for count in counts}
    try:
        matrix, gaps = served_matrix(flexible, fixed, "steps" if kind == "steps" else "flops"), regret(flexible, fixed)
    except ValueError as error:
        raise ConfigError(f"the twins of run {run.name!r} cannot be held against it: {error}") from error
    result = run.read_result().model_copy(update={"matrix": matrix})
    figures: dict[str, Path] = {
        "curve": curve_png([result], run.figures / "curve.png"),
        "curve (html)": curve_html([result], run.figures / "curve.html"),
        "matrix": matrix_png(matrix, run.figures / "matrix.png"),
        "matrix (html)": matrix_html(matrix, run.figures / "matrix.html"),
    }
    result = result.model_copy(
        update={
            "twins": matrix.kind,
            "regret": gaps,
            "figures": {**result.figures, **{name: str(path) for name, path in figures.items()}},
        }
    )
    write_result(run.result, result)
    record = run.record
    assert record.tracking_uri is not None, "a finished run has a tracking address"
    finish(record.tracking_uri, run.folder, result, figures={n: Path(p) for n, p in result.figures.items()})
    learn_id(run, record.tracking_uri)
    return run.read_result()


def _scores(run: Run) -> ItemScores:
    return Scores.read(run.folder / "scores.json").items

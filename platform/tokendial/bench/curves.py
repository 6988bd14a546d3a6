"""Curves per FLOP of many schedules, each trained once in this process from one common start: data for replays."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from tokendial import identity, metrics
from tokendial.bench.records import machine
from tokendial.contracts import RunConfig
from tokendial.curve import autc
from tokendial.experiments import ConfigError, workload
from tokendial.resolve import resolve
from tokendial.runs import config_hash, write_atomically
from tokendial.search.budget import spent_after
from tokendial.search.plan import answer_costs, as_trial
from tokendial.search.space import candidate, default_space, scalars
from tokendial.search.suggest import random

# Where the experiment's own recipe begins to draw counts: the tower is warm, and 16 tokens are read. What a schedule
# makes of the other counts shows from the first ninth of an allowance on.
START = (
    {"name": "warm_tower", "share": 700, "train": ["tower"], "objective": "tower", "lr_factor": 1.7},
    {"name": "read", "share": 800, "train": ["projector", "language"]},
)
START_SETTING = (f"stages={json.dumps(START)}", "budget.steps=1500", "schedule=fixed", "schedule.counts=[16]")
SETTING = (
    "workers=1",
    'stages=[{"name": "all", "share": 1, "train": ["projector", "language"]}]',
    "evaluation.validation_examples=128",
    "checkpoint.every=1000",
)
EXPERIMENT = "digits"
ALLOWANCE, LONG = 3e12, 6e12
# Seed 0 chose the found schedule, so it says nothing about how good that one is.
CONTEST_SEEDS = (1, 2, 3)


class Row(BaseModel):
    """One trained schedule: `points` are (share of the allowance spent, quality by count), the last one at its end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    label: str
    overrides: tuple[str, ...]
    chosen: dict[str, Any] = {}
    seed: int
    allowance: float
    flops: float
    steps: int
    points: tuple[tuple[float, dict[int, float]], ...]

    @property
    def autc(self) -> float:
        return autc(dict(self.points[-1][1]))

    @property
    def key(self) -> tuple[Any, ...]:
        """What was trained, whatever it was trained for."""
        return (self.overrides, self.seed, self.allowance)


class Curves(BaseModel):
    """`search_curves.json`."""

    model_config = ConfigDict(extra="forbid")

    experiment: str = EXPERIMENT
    setting: tuple[str, ...] = SETTING
    costs: dict[int, float] = {}
    machine: str = ""
    commit: str = ""
    rows: list[Row] = []
    results: dict[str, Any] = {}

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_text("utf-8")) if path.exists() else cls()

    def of(self, part: str) -> list[Row]:
        return [row for row in self.rows if row.part == part]

    def keep(self, name: str, result: Any, path: Path) -> None:
        self.results[name] = result
        self.write(path)

    def write(self, path: Path) -> None:
        """A line for each row, so that a new row is a new line."""
        document = self.model_dump(mode="json", exclude={"rows"})
        rows = ",\n".join(f"  {json.dumps(row.model_dump(mode='json'))}" for row in self.rows)
        text = json.dumps(document, indent=1).removesuffix("\n}") + f',\n "rows": [\n{rows}\n ]\n}}\n'
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)


class Wanted(BaseModel):
    """A schedule to train."""

    model_config = ConfigDict(frozen=True)

    part: str
    label: str
    overrides: tuple[str, ...]
    chosen: dict[str, Any] = {}
    seed: int = 0
    allowance: float = ALLOWANCE


def of_space(table: Curves) -> Iterator[Wanted]:
    """Admissible draws from the default space, without end."""
    base, known = resolve(EXPERIMENT, SETTING), {row.overrides for row in table.of("space")}
    space = default_space(base)
    for place in count():
        drawn = random(scalars(space), 0, place)
        try:
            wanted = Wanted(
                part="space", label=f"draw {place}", overrides=candidate(space, drawn, base).overrides, chosen=drawn
            )
            if wanted.overrides not in known:
                configured(wanted)
        except ValueError:
            continue
        yield wanted


def of_presets(table: Curves) -> Iterator[Wanted]:
    """Eight schedules, each at both allowances."""
    del table
    for allowance in (ALLOWANCE, LONG):
        for name, overrides in _named().items():
            yield Wanted(part="rank", label=name, overrides=overrides, allowance=allowance)


def _named() -> dict[str, tuple[str, ...]]:
    presets = ("tokenflex", "uniform", "m3", "flexivit", "sandwich", "curriculum")
    return {
        "the experiment's": (),
        "5:3:2": ("schedule=tokenflex", "schedule.weights=[5,3,2]"),
        **{name: (f"schedule={name}",) for name in presets},
    }


def of_contest(table: Curves) -> Iterator[Wanted]:
    """The best of the collected schedules, 2:3:5 and uniform, three seeds each that had no part in the choice."""
    if not table.of("space"):
        raise ConfigError("no schedule was collected; `tokendial bench search collect` comes first")
    best = max(table.of("space"), key=lambda row: row.autc)
    contest = {"found": best.overrides, "2:3:5": ("schedule=tokenflex",), "uniform": ("schedule=uniform",)}
    for seed in CONTEST_SEEDS:
        for label, overrides in contest.items():
            yield Wanted(part="versus", label=label, overrides=overrides, seed=seed)


def configured(wanted: Wanted) -> RunConfig[Any]:
    """The planned run of a schedule, from the common start on."""
    config = resolve(EXPERIMENT, (*SETTING, *wanted.overrides, f"seed={wanted.seed}"))
    return as_trial(config, wanted.allowance, shares_tower=False, judged=True)


def train_missing(table: Curves, wanted: Iterable[Wanted], path: Path, console: Console) -> None:
    """Train what the table has not, writing it after each run."""
    starts = Path(tempfile.gettempdir()) / "tokendial-bench-starts"
    with _gang():
        for number, line in enumerate(wanted):
            same = [row for row in table.rows if row.key == (line.overrides, line.seed, line.allowance)]
            if any(row.part == line.part for row in same):
                continue
            if same:
                table.rows.append(same[0].model_copy(update={"part": line.part, "label": line.label}))
                table.write(path)
                continue
            config, start = configured(line), _start(line.seed, starts)
            flops, steps, points = _trained(config, start)
            row = Row(**line.model_dump(), flops=flops, steps=steps, points=points)
            table.rows.append(row)
            table.costs, table.machine = answer_costs(resolve(EXPERIMENT, SETTING)), machine()
            table.commit = identity.capture(Path(__file__).parent).commit
            table.write(path)
            console.print(f"{number} {line.part} {line.label} seed {line.seed}: AUTC {row.autc:.4f}")


def _start(seed: int, folder: Path) -> Path:
    """Weights that the trials of a seed start from, trained where this machine has them not."""
    from tokendial.train.checkpoint import WEIGHTS, newest

    others = [line for line in SETTING if not line.startswith(("stages=", "evaluation."))]
    unscored = ("evaluation.split=validation", "evaluation.validation_examples=1")
    config = resolve(EXPERIMENT, (*others, *START_SETTING, *unscored, f"seed={seed}"))
    place = folder / f"{config_hash(config)}"
    if newest(place / "checkpoints") is None or not (place / "ledger.json").exists():
        _work(config, place, None, {})
    found = newest(place / "checkpoints")
    assert found is not None, "a finished run has its weights"
    return found.folder / WEIGHTS


def _trained(config: RunConfig[Any], start: Path) -> tuple[float, int, tuple[tuple[float, dict[int, float]], ...]]:
    """FLOPs, steps, and the curve by share of the allowance, of one run."""
    from tokendial.ledger import Ledger
    from tokendial.scores import Scores

    allowance = config.budget.flops or 0.0
    logged: dict[int, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        _work(config, Path(folder), start, logged)
        ledger = Ledger.from_json(json.loads((Path(folder) / "ledger.json").read_text("utf-8")))
        final = {k: point.quality for k, point in Scores.read(Path(folder) / "scores.json").measured()["curve"].items()}
    spent = spent_after(config, workload(config.workload).cost(config))
    points = [(spent[step] / allowance, curve) for step, curve in sorted(logged.items()) if step < ledger.steps]
    rounded = [(round(share, 4), {k: round(q, 5) for k, q in curve.items()}) for share, curve in points]
    last = (round(ledger.total.flops / allowance, 4), {k: round(q, 5) for k, q in final.items()})
    return ledger.total.flops, ledger.steps, (*rounded, last)


def _work(config: RunConfig[Any], folder: Path, weights: Path | None, logged: dict[int, dict[int, float]]) -> None:
    """One worker's whole work in this process; validation curves go into `logged` by step."""
    import torch

    from tokendial.train.driver import with_horizon
    from tokendial.train.worker import Order, Seat, work

    def log(step: int, values: Mapping[str, float]) -> None:
        if line := metrics.validation_curve(values):
            logged.setdefault(step, {}).update(line)

    planned = with_horizon(config)
    document = planned.model_dump(mode="json")
    order = Order(document, str(folder), planned.budget.horizon or 0, str(weights) if weights else None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work(order, Seat(0, 1, device, log, lambda latest: None))


@contextmanager
def _gang() -> Iterator[None]:
    """This process as the only worker: a gloo group of one, and what a launcher tells DeepSpeed."""
    import torch
    import torch.distributed as dist

    os.environ.setdefault("LOCAL_RANK", "0")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def show(table: Curves, console: Console) -> None:
    """The parts as tables."""
    for part in ("space", "rank", "versus"):
        rows = table.of(part)
        if rows:
            shown = Table(part, "seed", "allowance", "steps", "AUTC", box=None, pad_edge=False)
            for row in sorted(rows, key=lambda row: (row.allowance, -row.autc)):
                numbers = (f"{row.allowance:.3g}", str(row.steps), f"{row.autc:.4f}")
                shown.add_row(row.label, str(row.seed), *numbers)
            console.print(shown)
    for name, result in table.results.items():
        console.print(f"{name}: {json.dumps(result)}", highlight=False, soft_wrap=True)

"""Scoring an exported model on one process: any admissible counts, any split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendial import runs
from tokendial.contracts import Data, RunConfig, Task
from tokendial.contracts.precision import on_device
from tokendial.experiments import ConfigError, workload
from tokendial.model_folder import CARD, read_card
from tokendial.resolve import from_document
from tokendial.results import RunResult
from tokendial.runs import Run, config_hash
from tokendial.scores import Scores, examples_of, gather, grade

if TYPE_CHECKING:
    import torch

SPLITS = ("test", "validation")


def evaluate(
    model: str,
    counts: Sequence[int] | None,
    split: str | None,
    examples: int | None,
    progress: Callable[[Mapping[str, Any]], None],
) -> RunResult:
    """The curve of a run (`last`, name, id, folder) or of a model folder; raises ConfigError if it cannot be scored.

    What the run did and spent comes along where the run's folder is there.
    """
    folder, run = _located(model)
    # An unfinished run has no card, and is told of by its status.
    told = run is not None and (run.result.exists() or not (folder / CARD).is_file())
    trained = run.read_result() if run is not None and told else None
    card = read_card(folder)
    config = from_document(card.config)
    chosen = workload(card.workload)
    grid = tuple(counts or config.evaluation.counts)
    wanted = config.evaluation.model_copy(update={"counts": grid})
    config = config.model_copy(update={"evaluation": wanted})
    here = placed(config, folder)
    try:
        chosen.check(here)
        chosen.check_data(here)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    split = split or card.split
    if split not in SPLITS:
        raise ConfigError(f"--split {split!r} is not one of {', '.join(SPLITS)}")
    data, task = chosen.load(here)
    size = len(data.datasets(here)[split])
    if examples is not None and not 1 <= examples <= size:
        raise ConfigError(f"--examples {examples} is not in 1 to {size}, the size of split {split!r}")
    on_cpus = trained is not None and trained.ledger.get("gpu_seconds") == 0.0
    scores = score(folder, here, data, task, split, examples, progress, on_cpus)
    return RunResult(
        run_id=trained.run_id if trained else None,
        name=card.run,
        status="FINISHED",
        **scores.measured(card.trained_counts),
        metric=card.metric,
        workload=card.workload,
        experiment=config.experiment,
        schedule=config.schedule.preset,
        variant=config_hash(config, without="seed"),
        parent=trained.parent if trained else None,
        lineage=trained.lineage if trained else "",
        trained_counts=card.trained_counts,
        seed=config.seed,
        steps=trained.steps if trained else 0,
        flops=trained.flops if trained else 0.0,
        seconds=trained.seconds if trained else 0.0,
        ledger=trained.ledger if trained else {},
        model_dir=str(folder.resolve()),
        commit=card.commit,
    )


def _located(model: str) -> tuple[Path, Run | None]:
    """The model folder that a reference means, and the run it belongs to if it lies in one."""
    folder = Path(model)
    if (folder / "config.json").is_file() and not (folder / "run.json").is_file():
        home = Run(folder.resolve().parent)
        return folder, home if (home.folder / "run.json").is_file() and home.model == folder.resolve() else None
    run = runs.find(model)
    return run.model, run


def placed(config: RunConfig[Any], folder: Path) -> RunConfig[Any]:
    """Sizes and tokenizer from the exported folder where the run had them from elsewhere, which need not exist here."""
    model = config.model
    if not any((model.init_from, model.vision.source, model.language.source, model.language.tokenizer)):
        return config
    vision = model.vision.model_copy(update={"source": None, "config": {}})
    language = model.language.model_copy(update={"source": None, "config": {}, "tokenizer": None})
    own = model.model_copy(update={"init_from": str(folder), "vision": vision, "language": language})
    return config.model_copy(update={"model": own})


def score(
    folder: Path,
    config: RunConfig[Any],
    data: Data,
    task: Task,
    split: str,
    examples: int | None,
    progress: Callable[[Mapping[str, Any]], None],
    on_cpus: bool = False,
) -> Scores:
    """Every answer of the exported model on a split, at every count of the configuration's grid.

    `on_cpus`: the run trained, and was scored, on these.
    """
    import torch

    settings = config.evaluation
    chosen = examples_of(data, config, split, examples)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype_on(device, config, on_cpus)
    model = on_device(task.load(str(folder)), device, dtype)

    def report(done: int, total: int) -> None:
        progress({"stage": "score", "step": done, "total": total})

    graded = grade(task, model, data, chosen, config, settings.counts, device, dtype, progress=report)
    return gather([graded], split, data.digests(config)[split])


def dtype_on(device: torch.device, config: RunConfig[Any], on_cpus: bool = False) -> torch.dtype:
    """What training scored in on such a device, and fp32 on a CPU, whatever the run was trained in."""
    import torch

    in_bf16 = device.type == "cuda" and config.precision != "fp32" and not on_cpus
    return torch.bfloat16 if in_bf16 else torch.float32

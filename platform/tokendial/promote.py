"""Making a model the champion: check its record, score test once, compare with the champion, register, move the alias.

Nothing is registered where a check fails, or where the model is worse than the champion and nobody said `force`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokendial import identity, runs
from tokendial.contracts import RunConfig
from tokendial.contracts.precision import on_device
from tokendial.curve import CurvePoint, autc
from tokendial.evaluate import evaluate, placed
from tokendial.experiments import ConfigError, workload
from tokendial.failures import WorkFailed
from tokendial.model_folder import CARD, DIGESTS, LADDER, check_digests, digests, read_card
from tokendial.resolve import from_document
from tokendial.results import RunResult, read_result, write_result
from tokendial.runs import Run, write_atomically
from tokendial.search.found import find_search, read_found
from tokendial.tracking.uri import resolve_uri

Progress = Callable[[Mapping[str, Any]], None]
# Scores of another processor or batch may differ in the last bits, and so a few of many answers.
TOLERANCE = 0.01
# A version's curve is kept in six digits.
ROUNDING = 1e-6
WARM_UP, REPEATS = 3, 15


@dataclass(frozen=True)
class Standing:
    """A model's test curve as it was promoted with."""

    version: int
    run: str
    curve: Mapping[int, float]
    autc: float


@dataclass(frozen=True)
class Latency:
    """Median milliseconds, by count, of the whole answers to one image, alone on a device; `batch` answers at once."""

    ms: Mapping[int, float]
    batch: int
    device: str


@dataclass(frozen=True)
class Promotion:
    """What a promotion did, or with `dry_run` would do. `version` is None where nothing was registered.

    `before` is the version that was the champion; the model `is_champion` already where nothing was to be moved.
    """

    model: str
    run: str
    search: str | None
    metric: str
    curve: Mapping[int, CurvePoint]
    autc: float
    champion: Standing | None
    better: bool
    latency: Latency
    version: int | None
    before: int | None
    is_champion: bool


def promote(
    reference: str,
    trial: int | None = None,
    model: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda latest: None,
) -> Promotion:
    """Register a run, or the best trial of a search, and make it the champion of `model`.

    Raises ConfigError where it cannot be promoted or is worse than the champion, WorkFailed where its validation does
    not come out as recorded.
    """
    from tokendial.tracking import registry

    run, search = _chosen(reference, trial)
    config = from_document(run.config_document())
    recorded = run.read_result()
    check_digests(run.model)
    uri = _uri(run, config)
    name = registry.checked_name(model or config.tracking.registered_model or config.workload)
    # Asked before anything is scored: a registry that is away or a name that it would not take shows here.
    champion, known = standing(uri, name), _registered_before(uri, name, run)
    is_champion = champion is not None and champion.version == known
    progress({"stage": "checking its validation"})
    _check_record(run, recorded, progress)
    test = test_result(run, config, recorded, progress)
    assert test.autc is not None, "a test result has a curve"
    digest = _data_digest(run)
    basis = _basis(config, test, digest)
    better = is_champion or _is_better(uri, name, test, basis, champion, force or dry_run)
    progress({"stage": "measuring latency"})
    measured = latency(run.model, config, sorted(test.curve))
    version = known if is_champion else None
    if not dry_run and not is_champion:
        progress({"stage": "registering"})
        version = known or _register(uri, name, _sealed(run, config, test, measured, digest), run, test, search, basis)
        champion, compared = standing(uri, name), champion
        if champion != compared:
            # Another was promoted while this one was scored, measured and uploaded.
            better = _is_better(uri, name, test, basis, champion, force)
        reason = f"promoted {test.name}: AUTC {test.autc:.4f} on test" + ("" if better else ", forced")
        registry.move_alias(uri, name, version, identity.user_name(), reason)
    before = champion.version if champion and not is_champion else None
    return Promotion(
        model=name, run=run.name, search=search, metric=test.metric, curve=test.curve, autc=test.autc,
        champion=champion, better=better, latency=measured, version=version, before=before, is_champion=is_champion,
    )  # fmt: skip


def rollback(name: str, tracking_uri: str | None = None) -> tuple[int, int]:
    """Move the champion of a model back to the version before; returns (from, to)."""
    from tokendial.tracking import registry

    move = registry.rollback(resolve_uri(tracking_uri, runs.home()), name, identity.user_name(), "rolled back")
    assert move.before is not None, "a rollback comes from a version"
    return move.before, move.version


def test_result(run: Run, config: RunConfig[Any], recorded: RunResult, progress: Progress) -> RunResult:
    """The run's test curve: the one it ended with, or scored now and kept, so that test is scored once."""
    if recorded.split == "test":
        return recorded
    kept = run.folder / "test.json"
    if kept.exists():
        return read_result(kept)
    progress({"stage": "scoring test"})
    found = evaluate(str(run.folder), config.evaluation.counts, "test", None, progress)
    write_result(kept, found)
    return found


def standing(uri: str, name: str) -> Standing | None:
    """The champion of a model with the test curve it was promoted with; None where there is none."""
    from tokendial.tracking import registry

    if name not in registry.names(uri):
        return None
    found = registry.champion(uri, name)
    if found is None:
        return None
    # A version that was registered by other means has no curve to compare with.
    curve = {int(count): quality for count, quality in json.loads(found.tags.get("curve", "{}")).items()}
    return Standing(found.version, found.tags.get("run", ""), curve, autc(dict(curve)) if curve else 0.0)


def latency(folder: Path, config: RunConfig[Any], counts: list[int]) -> Latency:
    """Measure a model folder on this device."""
    import torch

    from tokendial.bench.records import machine
    from tokendial.scores import examples_of
    from tokendial.train.step import move

    config = placed(config, folder)
    data, task = workload(config.workload).load(config)
    cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32
    network = on_device(task.load(str(folder)), device, dtype).eval()
    batch = move(data.collate(examples_of(data, config, "validation", 1)), device, dtype)
    measured: dict[int, float] = {}
    answers = 0
    with torch.inference_mode():
        for count in counts:
            times = []
            for _ in range(WARM_UP + REPEATS):
                began = time.perf_counter()
                graded = task.grade(
                    network, task.encode(network, batch), batch, count, config.evaluation.max_new_tokens
                )
                answers = len(graded)
                if cuda:
                    torch.cuda.synchronize()
                times.append(1e3 * (time.perf_counter() - began))
            measured[count] = round(statistics.median(times[WARM_UP:]), 3)
    return Latency(measured, answers, torch.cuda.get_device_name() if cuda else machine())


def _chosen(reference: str, trial: int | None) -> tuple[Run, str | None]:
    """The run that a reference means, and the search it is of."""
    if find_search(reference) is None:
        if trial is not None:
            raise ConfigError(f"--trial {trial} goes with a search, and {reference!r} is none")
        run, search = runs.find(reference), None
    else:
        found = read_found(reference)
        number = found.best if trial is None else trial
        if number is None:
            raise ConfigError(f"no trial of search {reference!r} finished; `tokendial report {reference}` says why")
        rows = {row.number: row for row in found.trials if row.outcome.status == "FINISHED"}
        if number not in rows:
            raise ConfigError(
                f"--trial {number} did not finish; finished trials are {', '.join(map(str, rows)) or '-'}"
            )
        run, search = runs.find(rows[number].run), reference
    if run.record.status != "FINISHED":
        raise ConfigError(f"run {run.name!r} is {run.record.status}; only a finished run can be promoted")
    return run, search


def _uri(run: Run, config: RunConfig[Any]) -> str:
    return run.record.tracking_uri or resolve_uri(config.tracking.uri, runs.home())


def _check_record(run: Run, recorded: RunResult, progress: Progress) -> None:
    """Score the exported folder again on the split and examples of its record; WorkFailed where it differs."""
    if recorded.split == "test":
        # Test is scored once, so a run that ended on test is checked by its digests alone.
        return
    questions = next(iter(recorded.curve.values())).n
    again = evaluate(str(run.folder), sorted(recorded.curve), recorded.split, None, progress)
    for count, point in recorded.curve.items():
        gap = abs(again.curve[count].quality - point.quality)
        if gap > TOLERANCE or again.curve[count].n != questions:
            raise WorkFailed(
                f"run {run.name!r} has {again.curve[count].quality:.4f} on {recorded.split} at {count} tokens now, and "
                f"{point.quality:.4f} in its record; it is not promoted"
            )


def _basis(config: RunConfig[Any], test: RunResult, digest: str) -> dict[str, str]:
    """Tags that two versions share where their curves can be compared: what was asked, of how many, and how long."""
    questions = next(iter(test.curve.values())).n
    tokens = config.evaluation.max_new_tokens
    return {"metric": test.metric, "data": digest, "n": str(questions), "max_new_tokens": str(tokens)}


def _is_better(
    uri: str, name: str, test: RunResult, basis: Mapping[str, str], champion: Standing | None, force: bool
) -> bool:
    """Whether the model is at least as good as the champion; ConfigError where it is not, or cannot be compared."""
    if champion is None:
        return True
    from tokendial.tracking import registry

    tags = registry.resolve(uri, f"{name}/{champion.version}").tags
    same = basis.items() <= tags.items() and set(champion.curve) == set(test.curve)
    better = same and (test.autc or 0.0) >= champion.autc - ROUNDING
    if better or force:
        return better
    if not same:
        theirs = {tag: tags.get(tag, "not known") for tag in basis}
        other = [f"{tag} {basis[tag][:12]} against {theirs[tag][:12]}" for tag in basis if basis[tag] != theirs[tag]]
        if set(champion.curve) != set(test.curve):
            other.append(f"counts {sorted(test.curve)} against {sorted(champion.curve)}")
        raise ConfigError(
            f"run {test.name!r} cannot be compared with the champion {name}/{champion.version}, which was scored "
            f"otherwise ({', '.join(other)}); --force promotes it all the same"
        )
    raise ConfigError(
        f"run {test.name!r} has AUTC {test.autc:.4f} on test and the champion {name}/{champion.version} "
        f"{champion.autc:.4f} ({_beside(test, champion)}); --force promotes it all the same"
    )


def _beside(test: RunResult, champion: Standing) -> str:
    return ", ".join(f"{k}: {test.curve[k].quality:.3f} against {champion.curve[k]:.3f}" for k in sorted(test.curve))


def _data_digest(run: Run) -> str:
    """Digest of the test data that the model was made with."""
    found = read_card(run.model).data_digests
    return found.get("test", "")


def _sealed(run: Run, config: RunConfig[Any], test: RunResult, measured: Latency, digest: str) -> Path:
    """A copy of the exported folder with cards and ladder of its test curve, its latency, and fresh digests."""
    folder = run.folder / "promoted"
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(run.model, folder)
    ladder = json.loads((folder / LADDER).read_text("utf-8"))
    costs = {row["count"]: row["cost_flops"] for row in ladder["rows"]}
    rows = [
        {
            "count": count, "quality": point.quality, "quality_ci": list(point.ci), "cost_flops": costs[count],
            "latency_ms": measured.ms[count], "batch": measured.batch, "device": measured.device,
        }
        for count, point in sorted(test.curve.items())
    ]  # fmt: skip
    document = {**ladder, "split": "test", "dataset": {"workload": test.workload, "sha256": digest}, "rows": rows}
    write_atomically(folder / LADDER, json.dumps(document, indent=2))
    card = read_card(folder).model_copy(update={"split": "test", "autc": test.autc})
    write_atomically(folder / CARD, card.model_dump_json(indent=2))
    _, task = workload(config.workload).load(placed(config, folder))
    quality = {count: point.quality for count, point in test.curve.items()}
    task.describe(str(folder), config, quality, costs, card.data_digests, card.commit)
    write_atomically(folder / DIGESTS, "".join(f"{line}  {name}\n" for name, line in digests(folder).items()))
    return folder


def _registered_before(uri: str, name: str, run: Run) -> int | None:
    """The version of this run with these weights, where it was registered before."""
    from tokendial.tracking import registry

    if name not in registry.names(uri):
        return None
    weights = {tag: digest for tag, digest in registry.digest_tags(run.model).items() if tag.endswith(".safetensors")}
    wanted = {"run": run.name, **weights}
    found = [version for version in registry.versions(uri, name) if wanted.items() <= version.tags.items()]
    return found[-1].version if found else None


def _register(
    uri: str, name: str, folder: Path, run: Run, test: RunResult, search: str | None, basis: Mapping[str, str]
) -> int:
    from tokendial.tracking import registry

    tags = {
        "run": run.name,
        "search": search or "",
        **basis,
        "autc": f"{test.autc:.6f}",
        "curve": json.dumps({str(count): round(point.quality, 6) for count, point in sorted(test.curve.items())}),
        "commit": test.commit,
        "by": identity.user_name(),
    }
    return registry.register(uri, name, folder, run.record.run_id, tags).version

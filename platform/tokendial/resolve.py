"""From an experiment's name and dotted overrides to one validated configuration, before anything heavy is imported."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tokendial import machine
from tokendial.contracts import RunConfig
from tokendial.dotted import assign, problem
from tokendial.experiments import ConfigError, experiment, sentence, workload
from tokendial.presets import SECTION_PRESETS
from tokendial.runs import home
from tokendial.schedule import PRESETS, ScheduleConfig, preset
from tokendial.tracking import resolve_uri

MAX_CONFIG_BYTES = 1 << 20
_PARTS = ("vision", "language")
BOUNDS = ("steps", "flops", "tokens", "seconds")

__all__ = ["ConfigError", "from_document", "given", "resolve"]


def resolve(
    name: str | None,
    overrides: Sequence[str] = (),
    config_file: Path | None = None,
    machine_cpus: int | None = machine.cpus(),
    elsewhere: bool = False,
) -> RunConfig[Any]:
    """The configuration of a run.

    Args:
        name: experiment; may be None where `config_file` names it.
        overrides: `dotted.key=value` with JSON values (bare words are strings), or `section=preset`; a section given as
            a JSON object is its fields.
        config_file: a resolved configuration to start from instead of the experiment's own.
        machine_cpus: refuse more workers than this, and GPUs that are not here; None where the run goes elsewhere or
            is not started. Under RAY_ADDRESS it goes to that cluster, and this machine is not asked.
        elsewhere: the run reads its data on another machine, so it is not looked for here.

    Raises:
        ConfigError: one sentence naming the field, the value and what is admissible.
    """
    document = _read_document(config_file) if config_file else None
    base = experiment(_experiment_name(name, document))
    if document is not None:
        base = _validated(type(base), document)
    fields, presets = _parse(overrides, base)
    config = _validated(type(base), _merged(base, fields, presets))
    if not elsewhere:
        config = _placed(config)
    _check_horizon(config, fields)
    try:
        chosen = workload(config.workload)
        chosen.check(config)
        if not elsewhere:
            chosen.check_data(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    resolve_uri(config.tracking.uri, home())
    if machine_cpus is not None and not os.environ.get("RAY_ADDRESS"):
        _check_machine(config, machine_cpus)
    return config


def given(overrides: Sequence[str], base: RunConfig[Any]) -> set[str]:
    """Dotted keys that overrides give a value; of a preset, the section that it is of."""
    fields, presets = _parse(overrides, base)
    return {*fields, *presets}


def from_document(document: Mapping[str, Any]) -> RunConfig[Any]:
    """A resolved configuration read back in the type its experiment gives it."""
    return _validated(type(experiment(_experiment_name(None, document))), document)


def _placed(config: RunConfig[Any]) -> RunConfig[Any]:
    """Folders by their whole path: workers, and whoever reads the configuration later, may be in another folder."""
    model = config.model
    vision = model.vision.model_copy(update={"source": _whole_path(model.vision.source)})
    texts = {"source": _whole_path(model.language.source), "tokenizer": _whole_path(model.language.tokenizer)}
    language = model.language.model_copy(update=texts)
    parts = {"vision": vision, "language": language, "init_from": _whole_path(model.init_from)}
    data = config.data.model_copy(update={"path": _whole_path(config.data.path)})
    return config.model_copy(update={"model": model.model_copy(update=parts), "data": data})


def _whole_path(source: str | None) -> str | None:
    return os.path.abspath(source) if source and Path(source).is_dir() else source


def _check_horizon(config: RunConfig[Any], fields: Mapping[str, Any]) -> None:
    """A resolved configuration brings its computed horizon along; one that the user gives must not be passed over."""
    if "budget.horizon" in fields and config.budget.seconds is None and config.budget.horizon is not None:
        raise ConfigError(
            f"budget.horizon {config.budget.horizon} goes with budget.seconds only; other bounds say how many steps "
            "there are"
        )


def _check_machine(config: RunConfig[Any], cpus: int) -> None:
    """Raise ConfigError where the run would not start on this machine."""
    if config.workers > cpus:
        raise ConfigError(f"workers {config.workers} is more than the {cpus} CPUs of this machine")
    if config.precision == "bf16" and machine.gpus() < config.workers:
        raise ConfigError(
            f"precision 'bf16' needs a GPU for each of the {config.workers} workers and this machine has "
            f"{machine.gpus()}; use precision fp32 or auto"
        )
    if config.device == "gpu" and machine.gpus() < config.workers:
        raise ConfigError(
            f"device 'gpu' needs a GPU for each of the {config.workers} workers and this machine has "
            f"{machine.gpus()}; use device cpu or auto"
        )


def _experiment_name(name: str | None, document: Mapping[str, Any] | None) -> str:
    recorded = document.get("experiment") if document else None
    if document is not None and not isinstance(recorded, str):
        raise ConfigError("the config file has no `experiment`; it must be a resolved configuration of tokendial")
    if name and recorded and name != recorded:
        raise ConfigError(f"experiment {name!r} differs from {recorded!r} in the config file; give one of them")
    chosen = name or recorded
    if chosen is None:
        raise ConfigError("no experiment given; `tokendial train --list` shows them")
    return chosen


def _read_document(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise ConfigError(f"config file {path} has {size} bytes; the most admitted is {MAX_CONFIG_BYTES}")
        document = json.loads(path.read_text("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from error
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config file {path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"config file {path} holds a {type(document).__name__}; it must be a JSON object")
    return document


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise ConfigError(f"duplicate key {next(n for n in names if names.count(n) > 1)!r} in JSON; give each key once")
    return document


def _no_constant(name: str) -> None:
    raise ConfigError(f"{name} is not a number a configuration admits; numbers must be finite")


def _parse(overrides: Sequence[str], base: RunConfig[Any]) -> tuple[dict[str, Any], dict[str, str]]:
    fields: dict[str, Any] = {}
    presets: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r} is not of the form key=value")
        if key == "experiment":
            raise ConfigError(
                f"override {override!r} cannot change the experiment; name it first: `tokendial train {text}`"
            )
        key = "schedule" if key == "schedule.preset" else key
        value, section = _value(text), _section(base, key)
        named = section is not None and "." not in key and not isinstance(value, dict)
        for name, given in [(key, text)] if named else _leaves(key, value, section):
            if name in fields or name in presets:
                raise ConfigError(f"duplicate key {name!r}; give each key once")
            if named:
                presets[name] = text
            else:
                fields[name] = given
    return fields, presets


def _section(base: BaseModel | None, key: str) -> BaseModel | None:
    """The part of a configuration that a dotted key names; None where it names no part."""
    for part in key.split("."):
        inner = getattr(base, part, None)
        base = inner if isinstance(inner, BaseModel) else None
    return base


def _leaves(key: str, value: Any, section: BaseModel | None) -> Iterator[tuple[str, Any]]:
    """A section given as an object is its fields, one by one, and leaves the others as they are."""
    if section is None or not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from _leaves(f"{key}.{name}", inner, _section(section, name))


def _value(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except ConfigError:
        raise
    # ValueError, of a number of more digits than Python reads, too.
    except (ValueError, RecursionError):
        return text


def _merged(base: RunConfig[Any], fields: Mapping[str, Any], presets: Mapping[str, str]) -> dict[str, Any]:
    """The base as a document, with presets and then fields applied, whatever their order on the command line."""
    document = base.model_dump(mode="json")
    projector = fields.get("model.projector")
    if isinstance(projector, str) and projector in SECTION_PRESETS["model"]:
        document["model"] |= SECTION_PRESETS["model"][projector]
    for section, name in presets.items():
        if section == "schedule":
            continue
        choices = SECTION_PRESETS.get(section, {})
        if name not in choices:
            known = ", ".join(choices) or "none; set its fields with a dot"
            raise ConfigError(f"{section} preset {name!r} is unknown; presets of {section}: {known}")
        document[section] |= choices[name]
    label = fields.get("schedule.preset")
    known = label if isinstance(label, str) and label in PRESETS else None
    document["schedule"] = _schedule(base.schedule, fields, presets.get("schedule", known))
    given = [bound for bound in BOUNDS if f"budget.{bound}" in fields]
    if given:
        document["budget"] = dict.fromkeys(BOUNDS) | {"horizon": None}
    for part in _PARTS:
        # Weights bring their sizes along, so the experiment's are dropped.
        if fields.get(f"model.{part}.source") is not None or fields.get("model.init_from") is not None:
            document["model"][part]["config"] = {}
    for key, value in fields.items():
        assign(document, key, value, type(base))
    return document


def _schedule(base: ScheduleConfig, fields: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """The schedule that fields are then laid over; weights given without phases hold throughout the run."""
    document = _derived(base, fields, name)
    if "schedule.weights" in fields and "schedule.phases" not in fields:
        document["phases"] = []
    return document


def _derived(base: ScheduleConfig, fields: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """The preset named, or the base's own preset where only the counts change, over the counts asked for."""
    counts = fields.get("schedule.counts")
    wanted = tuple(counts) if isinstance(counts, list) and counts else None
    if name is None and (wanted is None or not _is_preset(base)):
        if wanted is not None and len(wanted) != len(base.counts) and "schedule.weights" not in fields:
            raise ConfigError(
                f"schedule.counts has {len(wanted)} entries, and the experiment's own law weighs {len(base.counts)}; "
                "give schedule.weights (and schedule.phases) too, or a preset, e.g. schedule=tokenflex"
            )
        return base.model_dump(mode="json")
    chosen = name or base.preset
    if chosen not in PRESETS:
        raise ConfigError(f"schedule preset {chosen!r} is unknown; choose one of {', '.join(PRESETS)}")
    try:
        return preset(chosen, wanted or PRESETS[chosen].counts(base.counts)).model_dump(mode="json")
    except ValidationError as error:
        raise ConfigError(sentence(error, "schedule.")) from error
    except TypeError as error:
        raise ConfigError(f"schedule.counts {list(wanted or ())} must be a list of positive whole numbers") from error


def _is_preset(schedule: ScheduleConfig) -> bool:
    """Whether a schedule is what its preset says, nothing changed over it."""
    return schedule.preset in PRESETS and schedule == preset(schedule.preset, schedule.counts)


def _validated(model: type[RunConfig[Any]], document: Mapping[str, Any]) -> RunConfig[Any]:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ConfigError(problem(error, model)) from error

"""The dotted keys of a configuration: every one with its type, default and meaning, and values put in by them."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tokendial.experiments import ConfigError, sentence

# Another library's keys: transformers' configurations.
_FREE = ("model.vision.config", "model.language.config")
Row = tuple[str, Any, str]


def keys(model: BaseModel, prefix: str = "") -> dict[str, Row]:
    """Every dotted key of a configuration as key → (type, value, meaning).

    Those of a section that is absent come with their defaults, as do those of a list's entries (`stages[].share`).
    """
    found: dict[str, Row] = {}
    for name, field in type(model).model_fields.items():
        value, key = getattr(model, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            found.update(keys(value, f"{key}."))
            continue
        found[key] = _row(field, value)
        inner = f"{key}[]." if get_origin(field.annotation) is tuple else f"{key}."
        for part, below in _fields(field.annotation).items():
            default = "required" if below.is_required() else below.get_default(call_default_factory=True)
            found[f"{inner}{part}"] = _row(below, default)
    return found


def assign(document: dict[str, Any], key: str, value: Any, model: type[BaseModel]) -> None:
    """Put a value into a configuration's document; raises ConfigError for a key that `model` has not."""
    *parents, last = key.split(".")
    place = document
    for depth, part in enumerate(parents):
        inside = ".".join(parents[:depth])
        section = f"{inside}.{part}".lstrip(".")
        _require(part, inside, place, model)
        if place.get(part) is None and (section.startswith(_FREE) or _below(model, section.split("."))):
            place[part] = {}
        inner = place.get(part)
        if isinstance(inner, list):
            raise ConfigError(f"key {key!r} goes into {section}, which is a list; give it whole, as {section}=[...]")
        if not isinstance(inner, dict):
            raise ConfigError(f"key {key!r} goes into {section}, which has no fields")
        place = inner
    _require(last, ".".join(parents), place, model)
    place[last] = value


def problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a validation as one sentence; an unknown key, with the names near it, before any other."""
    for found in error.errors(include_url=False):
        if found["type"] == "extra_forbidden":
            *parents, last = found["loc"]
            return _unknown(str(last), ".".join(map(str, parents)), _below(model, parents))
    return sentence(error)


def _require(part: str, inside: str, place: Mapping[str, Any], model: type[BaseModel]) -> None:
    if part in place or inside.startswith(_FREE):
        return
    known = _below(model, inside.split(".") if inside else []) or place
    if part not in known:
        raise ConfigError(_unknown(part, inside, known))


def _unknown(part: str, inside: str, known: Collection[str]) -> str:
    prefix = f"{inside}." if inside else ""
    near = difflib.get_close_matches(part, known, n=3, cutoff=0.5)
    if near:
        hint = f"near it: {', '.join(prefix + name for name in near)}"
    elif inside:
        hint = f"the keys of {inside} are {', '.join(known)}"
    else:
        hint = "`tokendial train EXPERIMENT --help` lists the keys"
    return f"unknown key {prefix + part!r}; {hint}"


def _below(model: type[BaseModel], parents: Iterable[str | int]) -> Mapping[str, FieldInfo]:
    """The fields of the section that a path leads to; places in a list are passed over. Empty where it is none."""
    fields = model.model_fields
    for part in parents:
        if isinstance(part, str):
            fields = _fields(fields[part].annotation) if part in fields else {}
    return fields


def _fields(annotation: Any) -> Mapping[str, FieldInfo]:
    """The fields of the model in an annotation such as `Model | None` or `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields
    return next((fields for part in get_args(annotation) if (fields := _fields(part))), {})


def _row(field: FieldInfo, value: Any) -> Row:
    return _type_name(field.annotation), value, field.description or ""


def _type_name(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return text.replace("typing.", "").split("Annotated[")[-1].split(", FieldInfo")[0].split(", Strict")[0]

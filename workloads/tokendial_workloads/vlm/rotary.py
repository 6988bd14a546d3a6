"""The rotary positions a language model may have, and the keys that each type of them needs; no transformers here."""

from collections.abc import Mapping
from typing import Any

from .fields import POSITIVE, SIZE, SWITCH, Rule, number

FACTOR: Rule = ("a number from 1", lambda value: number(value) and value >= 1)
FACTORS: Rule = ("a list of numbers above 0", lambda value: isinstance(value, list) and all(map(POSITIVE[1], value)))
BASE: Rule = ("a number above 1", lambda value: number(value) and value > 1)
LENGTH: Rule = ("a whole number above 1", lambda value: SIZE[1](value) and value > 1)

_YARN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
_LONG: Mapping[str, Rule] = {"short_factor": FACTORS, "long_factor": FACTORS}
_BANDS: Mapping[str, Rule] = {"low_freq_factor": POSITIVE, "high_freq_factor": POSITIVE}
# By rope type, what has to be there; a test compares them with transformers' own.
NEEDED: Mapping[str, Mapping[str, Rule]] = {
    "default": {},
    "linear": {"factor": FACTOR},
    "dynamic": {"factor": FACTOR},
    "yarn": {"factor": FACTOR},
    "longrope": _LONG,
    "llama3": {"factor": FACTOR, **_BANDS},
}
# What may be there, beside `rope_theta`.
ADMITTED: Mapping[str, Mapping[str, Rule]] = {
    "yarn": {"original_max_position_embeddings": LENGTH, "truncate": SWITCH, **dict.fromkeys(_YARN, POSITIVE)},
    "longrope": {"original_max_position_embeddings": LENGTH, "attention_factor": POSITIVE, "factor": FACTOR},
    "llama3": {"original_max_position_embeddings": LENGTH},
}


def check_rope(section: str, value: Mapping[str, Any], head_width: int, over_source: bool) -> None:
    """Raise ValueError where transformers could not build or run these positions in heads of `head_width`.

    Over a source they take the place of all that it has, its `rope_theta` too.
    """
    # `type` is the name that published configurations use, and transformers takes.
    field, kind = f"{section}.rope_parameters", value.get("rope_type", value.get("type", "default"))
    if not isinstance(kind, str) or kind not in NEEDED:
        raise ValueError(f"{field}.rope_type {kind!r} is unknown; choose one of {', '.join(NEEDED)}")
    theta: Mapping[str, Rule] = {"rope_theta": BASE if kind == "yarn" else POSITIVE}
    needed = {**NEEDED[kind], **(theta if over_source else {})}
    known = {**theta, **needed, **ADMITTED.get(kind, {})}
    for key, (meaning, _) in needed.items():
        if key not in value:
            raise ValueError(f"{field} lacks {key} ({meaning}), which rope_type {kind!r} needs")
    for key, given in value.items():
        if key in ("rope_type", "type"):
            continue
        if key not in known:
            raise ValueError(f"{field}.{key} is no key of rope_type {kind!r}, which has {', '.join(known)}")
        meaning, admits = known[key]
        if not admits(given):
            raise ValueError(f"{field}.{key} must be {meaning}, got {repr(given)[:77]}")
    _check_widths(field, kind, value, head_width)


def _check_widths(field: str, kind: str, value: Mapping[str, Any], head_width: int) -> None:
    if kind == "dynamic" and head_width <= 2:
        raise ValueError(f"{field}.rope_type 'dynamic' needs heads wider than 2, and these are {head_width} wide")
    for key in _LONG if kind == "longrope" else ():
        if len(value[key]) != head_width // 2:
            raise ValueError(
                f"{field}.{key} has {len(value[key])} numbers; heads of {head_width} need {head_width // 2} of them"
            )
    if kind == "llama3" and value["high_freq_factor"] <= value["low_freq_factor"]:
        low, high = value["low_freq_factor"], value["high_freq_factor"]
        raise ValueError(f"{field}.high_freq_factor {high} must be above low_freq_factor {low}")

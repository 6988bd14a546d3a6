"""The fields of transformers' configurations that a run may set, and what each admits. Imports no transformers."""

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "leaky_relu", "mish", "quick_gelu", "relu", "relu2", "silu")


def _whole(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Rule = tuple[str, Callable[[Any], bool]]
SIZE: Rule = ("a whole number above 0", _whole)
ID: Rule = ("null or a whole number from 0", lambda value: value is None or _whole(value, 0))
WINDOW: Rule = ("null or a whole number above 0", lambda value: value is None or _whole(value))
POSITIVE: Rule = ("a number above 0", lambda value: number(value) and value > 0)
PROBABILITY: Rule = ("a number from 0 to 1", lambda value: number(value) and 0 <= value <= 1)
SWITCH: Rule = ("true or false", lambda value: isinstance(value, bool))
ACTIVATION: Rule = (f"one of {', '.join(ACTIVATIONS)}", lambda value: value in ACTIVATIONS)
# What is in it, `rotary` checks.
ROPE: Rule = ("an object with rope_type and rope_theta", lambda value: isinstance(value, dict))
LAYERS: Rule = ("null or a list of names", lambda value: value is None or isinstance(value, list))

_TOWER: Mapping[str, Rule] = {
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": SIZE,
    "num_attention_heads": SIZE,
    "num_channels": ("3, as the images have red, green and blue", lambda value: value == 3),
    "image_size": SIZE,
    "patch_size": SIZE,
    "layer_norm_eps": POSITIVE,
}
_VIT: Mapping[str, Rule] = {**_TOWER, "hidden_act": ACTIVATION, "attention_dropout": PROBABILITY}
_LANGUAGE: Mapping[str, Rule] = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": SIZE,
    "num_attention_heads": SIZE,
    "num_key_value_heads": WINDOW,
    "hidden_act": ACTIVATION,
    "max_position_embeddings": SIZE,
    "initializer_range": POSITIVE,
    "rms_norm_eps": POSITIVE,
    "use_cache": SWITCH,
    "tie_word_embeddings": SWITCH,
    "rope_parameters": ROPE,
    "attention_dropout": PROBABILITY,
    "pad_token_id": ID,
    "bos_token_id": ID,
    "eos_token_id": ID,
}
_QWEN: Mapping[str, Rule] = {
    **_LANGUAGE,
    "use_sliding_window": SWITCH,
    "sliding_window": WINDOW,
    "max_window_layers": ("a whole number from 0", lambda value: _whole(value, 0)),
    "layer_types": LAYERS,
}

# By model type; a test compares them with transformers' own.
FIELDS: Mapping[str, Mapping[str, Rule]] = {
    "siglip_vision_model": _VIT,
    "clip_vision_model": {
        **_VIT,
        "projection_dim": SIZE,
        "initializer_range": POSITIVE,
        "initializer_factor": POSITIVE,
    },
    "tokendial_stem": {**_TOWER, "stem_width": SIZE},
    "llama": {
        **_LANGUAGE,
        "head_dim": WINDOW,
        "attention_bias": SWITCH,
        "mlp_bias": SWITCH,
        "pretraining_tp": SIZE,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": WINDOW, "attention_bias": SWITCH},
    "mistral": {**_LANGUAGE, "head_dim": WINDOW, "sliding_window": WINDOW},
}


def check_fields(section: str, kind: str, fields: Mapping[str, Any]) -> None:
    """Raise ValueError for a field that a model type lacks, or a value that it cannot have."""
    known = FIELDS[kind]
    for name, value in fields.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise ValueError(f"{section}.{name} is no field of model type {kind!r}{hint}")
        meaning, admits = known[name]
        if not admits(value):
            shown = repr(value)
            raise ValueError(f"{section}.{name} must be {meaning}, got {shown if len(shown) < 80 else shown[:77]}")

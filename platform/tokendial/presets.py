"""Presets of configuration sections other than the schedule: a name that stands for a few fields."""

from collections.abc import Mapping
from typing import Any

from tokendial.contracts.config import PROJECTOR_SETTINGS, ModelConfig


def _projector(chosen: str) -> Mapping[str, Any]:
    """A projector, the settings that only others have put back to their defaults."""
    others = [name for owner, names in PROJECTOR_SETTINGS.items() if owner != chosen for name in names]
    return {"projector": chosen, **{name: ModelConfig.model_fields[name].default for name in others}}


SECTION_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "zero": {
        "0": {"stage": 0},
        "1": {"stage": 1},
        "2": {"stage": 2},
        "3": {"stage": 3},
        "offload": {"stage": 3, "offload_optimizer": True, "offload_parameters": True},
    },
    "model": {name: _projector(name) for name in PROJECTOR_SETTINGS},
    "optimizer": {name: {"shape": name} for name in ("one_cycle", "cosine", "constant")},
    "evaluation": {
        "quick": {"validation_examples": 128, "test_examples": 256, "table_examples": 8},
        "large": {"validation_examples": 1024, "test_examples": 4096},
    },
    "checkpoint": {"often": {"every": 25, "keep": 4}, "rare": {"every": 1000, "keep": 1}},
}

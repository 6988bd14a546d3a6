"""Presets of configuration sections other than the schedule: a name that stands for a few fields."""

from collections.abc import Mapping
from typing import Any

SECTION_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "zero": {
        "0": {"stage": 0},
        "1": {"stage": 1},
        "2": {"stage": 2},
        "3": {"stage": 3},
        "offload": {"stage": 3, "offload_optimizer": True, "offload_parameters": True},
    },
    "model": {name: {"projector": name} for name in ("pool", "query", "pool_after", "mlp")},
    "optimizer": {name: {"shape": name} for name in ("one_cycle", "cosine", "constant")},
    "evaluation": {
        "quick": {"validation_examples": 128, "test_examples": 256, "table_examples": 8},
        "large": {"validation_examples": 1024, "test_examples": 4096},
    },
    "checkpoint": {"often": {"every": 25, "keep": 4}, "rare": {"every": 1000, "keep": 1}},
}

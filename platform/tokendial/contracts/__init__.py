"""What the parts of tokendial agree on: the configuration of a run and what a workload must offer. Imports no torch."""

from tokendial.contracts.config import (
    BudgetConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LanguageConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    Section,
    StageConfig,
    TowerConfig,
    TrackingConfig,
    ZeroConfig,
)
from tokendial.contracts.place import home
from tokendial.contracts.workload import Batch, Cost, Data, Example, Grade, Task, Workload

__all__ = [
    "Batch",
    "BudgetConfig",
    "CheckpointConfig",
    "Cost",
    "Data",
    "DataConfig",
    "EvaluationConfig",
    "Example",
    "Grade",
    "LanguageConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "Section",
    "StageConfig",
    "Task",
    "TowerConfig",
    "TrackingConfig",
    "Workload",
    "ZeroConfig",
    "home",
]

"""The captions workload as the platform finds it; importing this module imports no torch."""

from typing import Any

from tokendial.contracts import Cost, Data, RunConfig, Task, Workload

from tokendial_workloads.captions.attribution import ATTRIBUTION, LICENCE
from tokendial_workloads.captions.config import CaptionsData
from tokendial_workloads.captions.vocabulary import GROUPS, VOCABULARY
from tokendial_workloads.vlm.admission import check_counts
from tokendial_workloads.vlm.cost import ModelCost


def check(config: RunConfig[Any]) -> None:
    """Raise ValueError where the settings cannot work together."""
    data = config.data
    if not isinstance(data, CaptionsData):
        raise ValueError(f"the captions workload needs the settings of CaptionsData, got {type(data).__name__}")
    if config.model.language.tokenizer is not None:
        raise ValueError(
            f"model.language.tokenizer {config.model.language.tokenizer} is set, but captions trains its own"
        )
    check_counts(config)


def cost(config: RunConfig[Any]) -> Cost:
    """Text is padded to `data.text_tokens` beside the image slot; the warm-up head is one matrix on a mean."""
    model = ModelCost(config.model, config.data.text_tokens + 1, VOCABULARY, config.activation_checkpointing)
    model.warmup_head_flops = 2.0 * model.tower.width * VOCABULARY
    return model


def load() -> tuple[Data, Task]:
    from tokendial_workloads.captions.data import Captions
    from tokendial_workloads.captions.task import CaptionsTask

    return Captions(), CaptionsTask()


openmoji = Workload(
    name="captions.openmoji",
    metric="token_f1",
    licence=LICENCE,
    attribution=ATTRIBUTION,
    check=check,
    cost=cost,
    load=load,
    question_groups=GROUPS,
)

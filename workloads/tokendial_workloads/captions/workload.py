"""The captions workload as the platform finds it; importing this module imports no torch."""

from typing import TYPE_CHECKING, Any

from tokendial.contracts import Cost, Data, ModelConfig, RunConfig, Task, Workload

from tokendial_workloads.captions.attribution import ATTRIBUTION, LICENCE
from tokendial_workloads.captions.config import CaptionsData
from tokendial_workloads.captions.vocabulary import VOCABULARY
from tokendial_workloads.vlm.admission import check_folder, check_model
from tokendial_workloads.vlm.cost import ModelCost
from tokendial_workloads.vlm.shapes import tower_shape
from tokendial_workloads.vlm.vocabulary import tokenizer_folder, tokenizer_size

if TYPE_CHECKING:
    import torch
    from tokendial.contracts.serving import Serving


def check(config: RunConfig[Any]) -> None:
    """Raise ValueError where the settings cannot work together."""
    data = config.data
    if not isinstance(data, CaptionsData):
        raise ValueError(f"the captions workload needs the settings of CaptionsData, got {type(data).__name__}")
    if data.shift >= data.image_size:
        raise ValueError(
            f"data.shift {data.shift} would move pictures out of sight; it must be below data.image_size "
            f"{data.image_size}"
        )
    check_model(config, vocabulary_size(config.model))
    tower = tower_shape(config.model)
    if data.image_size != tower.grid[0] * tower.patch:
        raise ValueError(
            f"data.image_size {data.image_size} is not what the vision tower sees; set data.image_size="
            f"{tower.grid[0] * tower.patch}"
        )


def cost(config: RunConfig[Any]) -> Cost:
    """Text is padded to `data.text_tokens` beside the image slot; the warm-up head is one matrix on a mean."""
    vocabulary = vocabulary_size(config.model)
    model = ModelCost(config.model, config.data.text_tokens + 1, vocabulary, config.activation_checkpointing)
    model.warmup_head_flops = 2.0 * model.tower.width * vocabulary
    return model


def vocabulary_size(model: ModelConfig) -> int:
    """Ids of the run's tokenizer."""
    folder = tokenizer_folder(model)
    return VOCABULARY if folder is None else tokenizer_size(folder)


def load(config: RunConfig[Any]) -> tuple[Data, Task]:
    from tokendial_workloads.captions.data import Captions
    from tokendial_workloads.captions.task import CaptionsTask
    from tokendial_workloads.captions.tokenizer import tokenizer_of

    tokenizer = tokenizer_of(config.model)
    return Captions(tokenizer), CaptionsTask(tokenizer, own_data=config.data.path is not None)


def serve(folder: str, device: "torch.device", dtype: "torch.dtype", num_slots: int) -> "Serving":
    from tokendial_workloads.vlm.serving import VlmServing

    return VlmServing(folder, device, dtype, num_slots)


openmoji = Workload(
    name="captions.openmoji",
    metric="token_f1",
    licence=LICENCE,
    attribution=ATTRIBUTION,
    check=check,
    cost=cost,
    load=load,
    serve=serve,
    check_data=check_folder,
)

"""Low-rank adapters on the language model, through peft (LoRA, arXiv 2106.09685)."""

import copy
from typing import Any

from tokendial.contracts import LoraConfig
from torch import nn

from .model import TokendialForConditionalGeneration

ADAPTER = "lora_"


def add_adapters(model: TokendialForConditionalGeneration, config: LoraConfig) -> None:
    """Put adapters on every linear layer of the language model's blocks, in place; its own weights are frozen."""
    import peft

    language: Any = model.model.language_model
    targets = {
        name.rsplit(".", 1)[-1] for name, module in language.layers.named_modules() if isinstance(module, nn.Linear)
    }
    alpha: Any = config.alpha
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=alpha, lora_dropout=config.dropout, target_modules=sorted(targets)
    )
    peft.inject_adapter_in_model(settings, language)
    model.lm_head.requires_grad_(False)


def split_adapters(language: nn.Module) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Modules that hold adapter weights, and modules that hold the others; no parameter is in both."""
    adapters, others = nn.ModuleList(), nn.ModuleList()
    for name, module in language.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            (adapters if ADAPTER in name else others).append(module)
    return adapters, others


def merged(model: TokendialForConditionalGeneration) -> TokendialForConditionalGeneration:
    """The model with its adapters folded into the weights they sit on: a copy, or the model itself without adapters."""
    if not any(ADAPTER in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            layer: Any = module
            layer.merge(safe_merge=True)
            plain.set_submodule(name, layer.get_base_layer())
    return plain

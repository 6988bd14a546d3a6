"""A model on a device, in the precision it computes in. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn

    Model = TypeVar("Model", bound=nn.Module)


def on_device(model: Model, device: torch.device, dtype: torch.dtype) -> Model:
    """The model itself, its weights in `dtype`; buffers keep theirs, as they do in training and in transformers.

    Rotary positions rounded to bf16 would give other logits than the model was trained to.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, dtype if parameter.is_floating_point() else parameter.dtype)
    return model.to(device)

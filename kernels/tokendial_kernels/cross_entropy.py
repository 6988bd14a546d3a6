"""Cross entropy over a large vocabulary: Liger-Kernel's on CUDA where it is installed, PyTorch's elsewhere.

Liger computes the gradient in the forward pass, in the logits' own memory, so logits that are used afterwards, or share
memory with such, need `keep_logits`. Losses are summed in float32 here, as Liger keeps them in the dtype of the logits.
Shapes: T tokens, V vocabulary.
"""

from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokendial_kernels.validation import check_choice, check_device, check_floating

HAS_LIGER = find_spec("liger_kernel") is not None


def runs_liger(tensor: Tensor) -> bool:
    """True where Liger-Kernel is installed and the tensor is on a GPU."""
    return HAS_LIGER and tensor.is_cuda


def cross_entropy(
    logits_TV: Tensor,
    labels_T: Tensor,
    *,
    ignore_index: int = -100,
    reduction: Literal["none", "sum", "mean"] = "sum",
    keep_logits: bool = False,
) -> Tensor:
    """Return the loss in float32: [T] for "none", else a scalar; "mean" is over the labels that are not ignored.

    Without `keep_logits` the logits may be overwritten.
    """
    check_floating("logits_TV", logits_TV, 2)
    check_choice("reduction", reduction, ("none", "sum", "mean"))
    if labels_T.shape != logits_TV.shape[:1] or labels_T.dtype != torch.int64:
        found = f"shape {tuple(labels_T.shape)} and dtype {labels_T.dtype}"
        raise ValueError(f"labels_T has {found}; admissible: ({logits_TV.shape[0]},) and torch.int64")
    check_device("labels_T", labels_T, "logits_TV", logits_TV)
    if not runs_liger(logits_TV):
        return F.cross_entropy(logits_TV.float(), labels_T, ignore_index=ignore_index, reduction=reduction)
    from liger_kernel.ops import LigerCrossEntropyFunction  # pyright: ignore[reportMissingImports]

    own_TV = logits_TV.clone() if keep_logits else logits_TV
    losses_T = LigerCrossEntropyFunction.apply(own_TV, labels_T, None, ignore_index, 0.0, 0.0, "none")[0].float()
    if reduction == "none":
        return losses_T
    total = losses_T.sum()
    return total if reduction == "sum" else total / (labels_T != ignore_index).sum()

"""What the ops' matrix products cost, for torch's counter: `FlopCounterMode(custom_mapping=FLOP_FORMULAS)`.

Without these the counter sees neither the fused products on CUDA nor oneDNN's on a CPU. One multiply-add counts as 2.
"""

from typing import Any

import torch

import tokendial_kernels.bipartite_merge.op
import tokendial_kernels.projector.op  # noqa: F401

__all__ = ["FLOP_FORMULAS"]


def _gated_linear(rows: Any, gate_weight: Any, *_: Any, **__: Any) -> int:
    return 2 * 2 * rows[0] * gate_weight[0] * gate_weight[1]


def _match(metric: Any, *_: Any, **__: Any) -> int:
    batch, num_tokens, channels = metric
    return 2 * batch * (num_tokens - num_tokens // 2) * (num_tokens // 2) * channels


def _linear_pointwise(rows: Any, second: Any, third: Any, *_: Any, **__: Any) -> int:
    # oneDNN's linear takes its weight second, or third where the second is what the result is multiplied with.
    weight = third if third is not None and len(third) == 2 else second
    num_rows = 1
    for size in rows[:-1]:
        num_rows *= size
    return 2 * num_rows * weight[0] * weight[1]


FLOP_FORMULAS = {
    torch.ops.tokendial.gated_linear: _gated_linear,
    torch.ops.tokendial.match: _match,
    torch.ops.mkldnn._linear_pointwise: _linear_pointwise,
}

"""ToMe's matching on a CPU: the cosines of each item by oneDNN, which is the faster of PyTorch's two libraries there.

Shapes: B batch, N tokens, E = ceil(N / 2) even tokens, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tokendial_kernels.bipartite_merge.reference import best_match_reference
from tokendial_kernels.route import runs_x86


def best_match_cpu(metric_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """Return each even token's best cosine [B, E] and its partner's place among the odd tokens [B, E]."""
    if not runs_x86(metric_BNC):
        return best_match_reference(metric_BNC)
    unit_BNC = F.normalize(metric_BNC, dim=-1)
    even_BEC, odd_BOC = unit_BNC[:, ::2].contiguous(), unit_BNC[:, 1::2].contiguous()
    linear = torch.ops.mkldnn._linear_pointwise
    matches = [linear(even, odd, None, "none", [], "").max(dim=1) for even, odd in zip(even_BEC, odd_BOC, strict=True)]
    return torch.stack([match.values for match in matches]), torch.stack([match.indices for match in matches])

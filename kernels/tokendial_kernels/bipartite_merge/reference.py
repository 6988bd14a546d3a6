"""ToMe's bipartite matching in plain PyTorch (Bolya et al., arXiv 2210.09461, section 3).

Even tokens look among the odd ones for the partner with the largest cosine. Worked example: even tokens (1, 0), odd
tokens (0, 2) and (3, 3) have cosines 0 and 0.7071: best 0.7071, partner 1.
Shapes: B batch, N tokens, E = ceil(N / 2) even tokens, C channels.
"""

import torch.nn.functional as F
from torch import Tensor


def best_match_reference(metric_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """Return each even token's best cosine [B, E] and its partner's place among the odd tokens [B, E]."""
    unit_BNC = F.normalize(metric_BNC, dim=-1)
    cosines_BEO = unit_BNC[:, ::2] @ unit_BNC[:, 1::2].transpose(1, 2)
    return cosines_BEO.max(dim=2)

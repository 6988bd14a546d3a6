"""SwiGLU activation in plain PyTorch: silu(gate) * up (Shazeer, arXiv 2002.05202, equation 6).

Example: gate 0, 1, -1 with up 2, 2, 2 gives 0, 1.4621, -0.5379.
"""

import torch.nn.functional as F
from torch import Tensor


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, of the shape of both."""
    return F.silu(gate) * up

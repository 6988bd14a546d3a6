"""The TokenFLEX projector in plain PyTorch: pool, LayerNorm, SwiGLU feed-forward (arXiv 2504.03154).

down(silu(gate(x)) * up(x)) with x = LayerNorm(pool(features)); weights are laid out [out, in] as in nn.Linear. One set
serves every n. It repeats the pooling rule of `pool` because an exported model carries this file alone.
Shapes: B batch, N = height * width patches, C channels, n output side, H hidden width, D width of the language model.
"""

import torch.nn.functional as F
from torch import Tensor


def projector_reference(
    features_BNC: Tensor,
    grid: tuple[int, int],
    n: int,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    gate_weight_HC: Tensor,
    gate_bias: Tensor | None,
    up_weight_HC: Tensor,
    up_bias: Tensor | None,
    down_weight_DH: Tensor,
    down_bias: Tensor | None,
    eps: float = 1e-6,
    method: str = "adaptive_avg",
) -> Tensor:
    """Project [B, N, C] to [B, n*n, D]."""
    (height, width), (batch, _, channels) = grid, features_BNC.shape
    maps_BCHW = features_BNC.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    resized = (-(-height // n) * n, -(-width // n) * n)
    if method == "resize_then_avg" and resized != (height, width):
        maps_BCHW = F.interpolate(maps_BCHW, size=resized, mode="bilinear", align_corners=True)
    pooled_BCnn = F.adaptive_avg_pool2d(maps_BCHW, (n, n))
    pooled_BkC = pooled_BCnn.permute(0, 2, 3, 1).reshape(batch, n * n, channels)
    normed_BkC = F.layer_norm(pooled_BkC, (channels,), norm_weight, norm_bias, eps)
    gate_BkH = F.linear(normed_BkC, gate_weight_HC, gate_bias)
    up_BkH = F.linear(normed_BkC, up_weight_HC, up_bias)
    return F.linear(F.silu(gate_BkH) * up_BkH, down_weight_DH, down_bias)

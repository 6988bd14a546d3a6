"""The small convolutional-stem vision tower, and how features are taken from any tower AutoModel can load.

Shapes: B images, N = height * width patches, D tower width, S stem width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from .configuration import StemConfig
from .positions import sincos_table


class StemBlock(GradientCheckpointingLayer):
    """A pre-norm transformer block."""

    def __init__(self, config: StemConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.norm_1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        qkv_3BHNd = self.qkv(self.norm_1(x_BND)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHNd = F.scaled_dot_product_attention(*qkv_3BHNd.unbind(0))
        x_BND = x_BND + self.out(mixed_BHNd.transpose(1, 2).flatten(2))
        return x_BND + self.fc2(F.gelu(self.fc1(self.norm_2(x_BND))))


class StemTower(PreTrainedModel):
    """Two 3x3 stride-2 convolutions and one 3x3, positions, then pre-norm blocks: [B, 3, H, W] to [B, HW / 16, D]."""

    config: StemConfig
    config_class = StemConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    base_model_prefix = "stem"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    positions_ND: Tensor

    def __init__(self, config: StemConfig) -> None:
        super().__init__(config)
        stem, width = config.stem_width, config.hidden_size
        self.conv_1 = nn.Conv2d(config.num_channels, stem, 3, stride=2, padding=1)
        self.conv_2 = nn.Conv2d(stem, width, 3, stride=2, padding=1)
        self.conv_3 = nn.Conv2d(width, width, 3, padding=1)
        self.layers = nn.ModuleList(StemBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.register_buffer("positions_ND", self._positions(), persistent=False)
        self.gradient_checkpointing = False
        self.post_init()

    def _positions(self) -> Tensor:
        side = self.config.image_size // self.config.patch_size
        return sincos_table(side, side, self.config.hidden_size)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Features of images [B, 3, H, W]; hidden states are the input of each block, then the normed last output."""
        side = self.config.image_size
        if pixel_values.shape[1:] != (self.config.num_channels, side, side):
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; admissible: "
                f"(images, {self.config.num_channels}, {side}, {side})"
            )
        maps_BSHW = F.gelu(self.conv_1(pixel_values))
        maps_BDHW = self.conv_3(F.gelu(self.conv_2(maps_BSHW)))
        x_BND = maps_BDHW.flatten(2).transpose(1, 2) + self.positions_ND.to(maps_BDHW.dtype)
        hidden_states = [x_BND]
        for layer in self.layers:
            x_BND = layer(x_BND)
            hidden_states.append(x_BND)
        hidden_states[-1] = x_BND = self.norm(x_BND)
        return BaseModelOutput(last_hidden_state=x_BND, hidden_states=tuple(hidden_states))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.lecun_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, StemTower):
            init.copy_(module.positions_ND, module._positions())
        else:
            super()._init_weights(module)


def tower_features(tower: PreTrainedModel, pixel_values: Tensor, layer: int, drop_first: bool) -> Tensor:
    """Patch features [B, N, D] of one layer; `layer` -1 is the tower's own last output, after its last norm if any.

    `drop_first` removes a class token. Other layers index transformers' `hidden_states`, as LLaVA's setting does.
    """
    if layer == -1:
        features_BND = tower(pixel_values=pixel_values).last_hidden_state
    else:
        features_BND = tower(pixel_values=pixel_values, output_hidden_states=True).hidden_states[layer]
    return features_BND[:, 1:] if drop_first else features_BND


def patch_grid(config: Any) -> tuple[int, int]:
    """(height, width) in patches of a tower configuration; ValueError where it does not say."""
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if size is None or patch is None:
        raise ValueError(f"a tower of type {config.model_type!r} has no image_size and patch_size to tell its grid by")
    height, width = (size, size) if isinstance(size, int) else size
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    return height // patch_height, width // patch_width


def leading_tokens(tower: PreTrainedModel, grid: tuple[int, int]) -> int:
    """Tokens before the patches (0, or 1 for a class token), found by running the tower's shapes on no data."""
    config: Any = tower.config
    patch = config.patch_size
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    shape = (1, getattr(config, "num_channels", 3), grid[0] * patch_height, grid[1] * patch_width)
    parameter = next(tower.parameters())
    with torch.no_grad():
        tokens = tower(pixel_values=torch.zeros(shape, dtype=parameter.dtype, device=parameter.device))
    extra = tokens.last_hidden_state.shape[1] - grid[0] * grid[1]
    if extra not in (0, 1):
        raise ValueError(
            f"a tower of type {config.model_type!r} gives {tokens.last_hidden_state.shape[1]} tokens for a "
            f"{grid[0]}x{grid[1]} grid; admissible: {grid[0] * grid[1]}, or one more where the first is a class token"
        )
    return extra


AutoModel.register(StemConfig, StemTower, exist_ok=True)

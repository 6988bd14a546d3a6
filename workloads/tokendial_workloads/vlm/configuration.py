"""Configurations of the model and of the small convolutional-stem tower, as transformers reads and writes them."""

from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.llava.configuration_llava import LlavaConfig

from .counts import admissible_counts, check_count


class StemConfig(PreTrainedConfig):
    """A small tower: two 3x3 stride-2 convolutions, one 3x3, fixed 2-D sin-cos positions, `num_hidden_layers` blocks.

    A patch is 4x4 pixels, so `image_size` must be a multiple of 4.
    """

    model_type = "tokendial_stem"
    base_config_key = "vision_config"

    hidden_size: int = 64
    stem_width: int = 32
    num_hidden_layers: int = 1
    num_attention_heads: int = 4
    intermediate_size: int = 256
    image_size: int = 48
    num_channels: int = 3
    patch_size: int = 4
    layer_norm_eps: float = 1e-6

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.patch_size != 4 or self.image_size % 4 or self.image_size <= 0:
            raise ValueError(
                f"a tokendial_stem patch is 4x4 pixels: patch_size must be 4 and image_size a positive multiple of it, "
                f"got patch_size {self.patch_size} and image_size {self.image_size}"
            )
        if self.hidden_size % 4 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of 4 and of num_attention_heads, got hidden_size {self.hidden_size} "
                f"and num_attention_heads {self.num_attention_heads}"
            )


class TokendialConfig(LlavaConfig):
    """LLaVA's composition with a projector that serves every admissible count.

    `grid` is (height, width) in patches. `counts` are the counts the model was trained at: a record for readers of the
    folder, never consulted by the model, which serves whatever is admissible.
    """

    model_type = "tokendial_llava"

    vision_config: Any = None
    text_config: Any = None
    projector: str = "pool"
    pooling: Literal["adaptive_avg", "resize_then_avg"] = "adaptive_avg"
    hidden_factor: float = 3.0
    max_queries: int = 256
    query_keys: Literal["position", "features"] = "position"
    query_width: int | None = None
    query_heads: int | None = None
    grid: list[int] | tuple[int, int] = (12, 12)
    counts: list[int] | tuple[int, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.image_seq_length = self.grid[0] * self.grid[1]

    @property
    def admissible_counts(self) -> tuple[int, ...]:
        """Every count the projector serves, rising."""
        return tuple(admissible_counts(self.projector, (self.grid[0], self.grid[1]), self.max_queries))

    def check_count(self, k: int) -> int:
        """Return k, or raise ValueError listing the admissible counts."""
        return check_count(self.projector, (self.grid[0], self.grid[1]), self.max_queries, k)


AutoConfig.register("tokendial_stem", StemConfig, exist_ok=True)
AutoConfig.register("tokendial_llava", TokendialConfig, exist_ok=True)

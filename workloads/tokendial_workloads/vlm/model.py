"""The model: transformers' LLaVA composition with a projector that serves every admissible count.

The count of a call is read from the placeholders in `input_ids`, or given as `num_visual_tokens`. Features encoded once
serve several counts: `mm_encoder_outputs={"image": model.get_image_features(pixels)}`, or `image_features=`.
Shapes: B rows, I images, N patches, k visual tokens, L ids, C tower width, D language width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import (
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaModelOutputWithPast,
    LlavaPreTrainedModel,
)

from .configuration import TokendialConfig
from .projectors import MlpProjector, PoolProjector, QueryProjector, build_projector
from .towers import tower_features


class TokendialModel(LlavaModel):
    """Vision tower, projector and language model without its head."""

    config: TokendialConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    config_class = TokendialConfig

    def __init__(self, config: TokendialConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = build_projector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PoolProjector | MlpProjector | QueryProjector):
            module.initialise()
        else:
            super()._init_weights(module)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Patch features [I, N, C] of images [I, 3, H, W]."""
        drop_first = self.config.vision_feature_select_strategy == "default"
        layer: Any = self.config.vision_feature_layer
        pixel_values = pixel_values.to(self.vision_tower.dtype)
        features_INC = tower_features(self.vision_tower, pixel_values, layer, drop_first)
        if features_INC.shape[1] != self.config.image_seq_length:
            raise ValueError(
                f"the vision tower gave {features_INC.shape[1]} patches for images of {tuple(pixel_values.shape[2:])} "
                f"pixels; admissible: {self.config.image_seq_length} (grid {tuple(self.config.grid)})"
            )
        return features_INC

    def project(self, features_INC: Tensor, k: int) -> Tensor:
        """Visual tokens [I, k, D]; ValueError listing the admissible counts where k is not one."""
        return self.multi_modal_projector(features_INC, self.config.check_count(k))

    def get_image_features(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pixel_values: Tensor, num_visual_tokens: int | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Patch features as `last_hidden_state`; with a count also its visual tokens as `pooler_output`, per image."""
        features_INC = self.encode(pixel_values)
        tokens: Any = None if num_visual_tokens is None else list(self.project(features_INC, num_visual_tokens))
        return BaseModelOutputWithPooling(last_hidden_state=features_INC, pooler_output=tokens)

    def infer_count(self, input_ids: Tensor, num_images: int) -> int:
        """Placeholders per image; ValueError where they do not divide or the count is not admissible."""
        placeholders_B = (input_ids == self.config.image_token_id).sum(1)
        total = int(placeholders_B.sum())
        k, rest = divmod(total, num_images)
        if rest or (k and bool((placeholders_B % k).any())):
            raise ValueError(
                f"rows hold {placeholders_B.tolist()} image placeholders for {num_images} images; admissible: the same "
                f"count for every image, one of {_listed(self.config.admissible_counts)}"
            )
        return self.config.check_count(k)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        image_features: Tensor | None = None,
        num_visual_tokens: int | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        """LLaVA's forward; images come as pixels, as features [I, N, C] encoded before, or as encoder outputs."""
        image = (mm_encoder_outputs or {}).get("image")
        if sum(given is not None for given in (pixel_values, image_features, image)) > 1:
            raise ValueError("give only one of pixel_values, image_features and mm_encoder_outputs")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if pixel_values is not None:
            image_features = self.encode(pixel_values)
        if image_features is not None:
            image = BaseModelOutputWithPooling(last_hidden_state=image_features)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        assert inputs_embeds is not None
        if image is not None:
            tokens_TD = self._tokens(image, input_ids, num_visual_tokens).flatten(0, 1).to(inputs_embeds)
            ids: Any = input_ids
            mask = self.get_placeholder_mask(ids, inputs_embeds=inputs_embeds, image_features=tokens_TD[None])
            inputs_embeds = inputs_embeds.masked_scatter(mask, tokens_TD)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return LlavaModelOutputWithPast(**outputs, image_outputs=image)

    def _tokens(self, image: BaseModelOutputWithPooling, input_ids: Tensor | None, k: int | None) -> Tensor:
        if image.pooler_output is not None:
            return torch.stack(list(image.pooler_output))
        assert image.last_hidden_state is not None
        if k is None:
            if input_ids is None:
                raise ValueError(
                    "with inputs_embeds the count cannot be read from placeholders: give num_visual_tokens"
                )
            k = self.infer_count(input_ids, image.last_hidden_state.shape[0])
        return self.project(image.last_hidden_state, k)


class TokendialForConditionalGeneration(LlavaForConditionalGeneration):
    """The whole model. Evaluation and generation never consult a training law: the prompt holds the count."""

    config: TokendialConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    config_class = TokendialConfig
    model: TokendialModel

    def __init__(self, config: TokendialConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = TokendialModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()
        # A placeholder in an answer would ask for an image that is not there.
        self.generation_config.suppress_tokens = [config.image_token_id]

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Patch features [I, N, C] of images [I, 3, H, W]; project them at as many counts as wanted."""
        return self.model.encode(pixel_values)

    def project(self, features_INC: Tensor, k: int) -> Tensor:
        """Visual tokens [I, k, D]; ValueError listing the admissible counts where k is not one."""
        return self.model.project(features_INC, k)

    def get_image_features(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pixel_values: Tensor, num_visual_tokens: int | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Patch features, and with a count also visual tokens, as `mm_encoder_outputs` takes them."""
        return self.model.get_image_features(pixel_values, num_visual_tokens, **kwargs)

    def _expand_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Project at the prompt's own count before beams multiply the rows."""
        image = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if image is not None and image.pooler_output is None:
            tokens: Any = list(self.model._tokens(image, input_ids, kwargs.get("num_visual_tokens")))
            image = BaseModelOutputWithPooling(last_hidden_state=image.last_hidden_state, pooler_output=tokens)
            kwargs["mm_encoder_outputs"] = {**kwargs["mm_encoder_outputs"], "image": image}
        stock: Any = super()
        return stock._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)


def _listed(counts: Sequence[int]) -> str:
    consecutive = len(counts) > 8 and counts[-1] - counts[0] == len(counts) - 1
    return f"{counts[0]} to {counts[-1]}" if consecutive else ", ".join(map(str, counts))


AutoModel.register(TokendialConfig, TokendialModel, exist_ok=True)
AutoModelForImageTextToText.register(TokendialConfig, TokendialForConditionalGeneration, exist_ok=True)

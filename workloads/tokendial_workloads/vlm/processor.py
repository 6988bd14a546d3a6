"""Images and text to model inputs: `visual_tokens=k` says how many placeholders each image gets.

It travels with exported folders, so it imports transformers, numpy and its own neighbours only.
"""

from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import to_pil_image
from transformers.image_utils import ChannelDimension, PILImageResampling
from transformers.processing_utils import ProcessorMixin

from .configuration import TokendialConfig
from .counts import check_count
from .letterbox import letterbox, rgb, upright

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{{- '\\n' + message.role + ': ' }}
{%- if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}
{%- endif %}
{%- if message.role == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '\\nassistant: ' }}{% endif %}"""


def normalise(image_CHW: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    """8-bit pixels [C, H, W] to float32 with the tower's mean and deviation; every caller gets the same bits."""
    scaled_CHW = image_CHW.astype(np.float32) / np.float32(255)
    mean_C11, std_C11 = (np.asarray(values, np.float32)[:, None, None] for values in (mean, std))
    return (scaled_CHW - mean_C11) / std_C11


class TokendialImageProcessor(PilBackend):
    """RGB, letterboxed to the tower's size by PIL, scaled to [0, 1], normalised: pixel_values [I, 3, H, W]."""

    resample = PILImageResampling.BICUBIC
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    rescale_factor = 1 / 255
    image_mean: Any = (0.5, 0.5, 0.5)
    image_std: Any = (0.5, 0.5, 0.5)
    size: Any = None

    def process_image(self, image: Any, *rest: Any, **named: Any) -> np.ndarray:
        """Pixels [C, H, W] of a picture, which Pillow may have opened without turning it upright."""
        seen = rgb(upright(image)) if isinstance(image, Image.Image) else image
        return super().process_image(seen, *rest, **named)

    def _preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: list[np.ndarray],
        size: Any = None,
        resample: Any = None,
        image_mean: Any = None,
        image_std: Any = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        pixels = []
        for image_CHW in images:
            if image_CHW.shape[1:] != (size.height, size.width):
                image = to_pil_image(image_CHW, input_data_format=ChannelDimension.FIRST)
                image_CHW = np.moveaxis(np.asarray(letterbox(image, size.width, size.height, resample)), -1, 0)
            pixels.append(normalise(image_CHW, list(image_mean), list(image_std)))
        return BatchFeature(data={"pixel_values": np.stack(pixels)}, tensor_type=return_tensors)


class TokendialProcessor(ProcessorMixin):
    """Image processor and tokenizer; knows which counts the model serves."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        projector: str = "pool",
        grid: list[int] | tuple[int, int] = (12, 12),
        max_queries: int = 256,
        visual_tokens: int = 16,
    ) -> None:
        """`visual_tokens` is the count of calls that give none."""
        self.image_token = image_token
        self.projector, self.grid, self.max_queries = projector, list(grid), max_queries
        self.visual_tokens = check_count(projector, (grid[0], grid[1]), max_queries, visual_tokens)
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        visual_tokens: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """input_ids and attention_mask with k placeholders per image, left-padded, and pixel_values [I, 3, H, W].

        Raises ValueError where the count is not admissible, or images and placeholders differ in number.
        """
        k = self.visual_tokens if visual_tokens is None else visual_tokens
        check_count(self.projector, (self.grid[0], self.grid[1]), self.max_queries, k)
        texts = [text] if isinstance(text, str) else list(text or [])
        images = [] if images is None else _flat(images)
        wanted = sum(row.count(self.image_token) for row in texts)
        if texts and wanted != len(images):
            raise ValueError(f"the text has {wanted} {self.image_token} placeholders for {len(images)} images")
        data: dict[str, Any] = {}
        if texts:
            grown = [row.replace(self.image_token, self.image_token * k) for row in texts]
            kwargs.setdefault("padding", len(texts) > 1)
            # An answer follows the last column, which must be text in every row.
            kwargs.setdefault("padding_side", "left")
            kwargs.setdefault("return_token_type_ids", False)
            data.update(self.tokenizer(grown, return_tensors=return_tensors, **kwargs))
        if images:
            data.update(self.image_processor(images, return_tensors=return_tensors))
        return BatchFeature(data, tensor_type=return_tensors)


def _flat(images: Any) -> list[Any]:
    """A list of images from one image, a list, or a list of lists (a row of images per text)."""
    if not isinstance(images, list | tuple):
        return [images]
    return [image for row in images for image in _flat(row)]


AutoImageProcessor.register(TokendialConfig, slow_image_processor_class=TokendialImageProcessor, exist_ok=True)
AutoProcessor.register(TokendialConfig, TokendialProcessor, exist_ok=True)

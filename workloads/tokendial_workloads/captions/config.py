"""Data settings of the captions workload."""

from typing import Annotated

from pydantic import Field
from tokendial.contracts import DataConfig


class CaptionsData(DataConfig):
    """Null `path`: OpenMoji; otherwise a folder of images with a `metadata.csv` of `file_name,text`."""

    path: str | None = Field(
        default=None, description="folder of pictures with a metadata.csv of file_name,text; null: OpenMoji's"
    )
    text_tokens: Annotated[int, Field(gt=0, strict=True)] = Field(
        default=32,
        description="text tokens each example is padded to, placeholders excluded; the longest caption must fit",
    )
    image_size: Annotated[int, Field(ge=16, le=512, strict=True)] = Field(
        default=48, description="side of the square that images are drawn in, pixels"
    )
    shift: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=3, description="training images are moved by up to this many pixels in each direction"
    )
    repeats: Annotated[int, Field(gt=0, strict=True)] = Field(
        default=64, description="differently moved copies of each image in the training split"
    )

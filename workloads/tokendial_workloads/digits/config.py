"""Data settings of the digits workload."""

from typing import Annotated

from pydantic import Field
from tokendial.contracts import DataConfig


class DigitsData(DataConfig):
    """Null `path`: scikit-learn's 1,797 digits; otherwise a folder with one sub-folder of images per class 0 … 9."""

    path: str | None = Field(
        default=None, description="folder with a folder of images per class, 0 to 9; null: scikit-learn's digits"
    )
    text_tokens: Annotated[int, Field(gt=0, strict=True)] = Field(
        default=73, description="text tokens each example is padded to, placeholders excluded"
    )
    turns: Annotated[int, Field(gt=0, le=16, strict=True)] = Field(
        default=12,
        description="question and answer turns of a training example; in evaluation, one question each",
    )
    train_mosaics: Annotated[int, Field(gt=0, strict=True)] = Field(
        default=131072, description="different mosaics in the training split"
    )
    evaluation_mosaics: Annotated[int, Field(gt=0, strict=True)] = Field(
        default=8192, description="different mosaics in the validation split and in the test split"
    )
    evaluation_seed: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=0, description="seed of validation and test mosaics: the same mosaics for every run"
    )
    warps: Annotated[int, Field(ge=0, le=64, strict=True)] = Field(
        default=8, description="slightly turned, slanted and resized copies of each training digit"
    )
    invert: bool = Field(default=False, description="images under `path` are dark ink on a light ground")

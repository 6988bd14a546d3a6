"""Pictures of any shape in the tower's frame."""

import numpy as np
import pytest
from PIL import Image
from tokendial_workloads.vlm.letterbox import letterbox


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


@pytest.mark.parametrize("side", [20, 48, 90])
def test_a_square_is_resized_and_nothing_else(side: int) -> None:
    expected = noise(side, side).resize((48, 48), Image.Resampling.BICUBIC)
    assert (np.asarray(letterbox(noise(side, side), 48, 48)) == np.asarray(expected)).all()


def test_a_picture_that_is_not_square_lies_between_white_bands_in_its_own_proportions() -> None:
    wide, tall = (np.asarray(letterbox(noise(*size), 48, 48)) for size in ((200, 100), (100, 200)))
    assert (wide[:12] == 255).all()
    assert (wide[36:] == 255).all()
    assert (wide[12:36] == np.asarray(noise(200, 100).resize((48, 24)))).all()
    assert (tall[:, :12] == 255).all()
    assert (tall[:, 36:] == 255).all()
    assert (tall[:, 12:36] == np.asarray(noise(100, 200).resize((24, 48)))).all()

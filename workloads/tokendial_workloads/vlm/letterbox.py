"""The one rule by which a picture of any shape becomes what the tower sees, in training, exported and served.

It travels with exported folders, so it imports Pillow alone.
"""

from PIL import Image, ImageOps


def letterbox(image: Image.Image, width: int, height: int, resample: int = Image.Resampling.BICUBIC) -> Image.Image:
    """Scaled to fit inside, the rest white on both sides alike: 200 × 100 in 48 × 48 is 48 × 24 between white bands.

    It is scaled before it is padded, so that a long thin picture never needs the memory of its square.
    """
    return ImageOps.pad(image, (width, height), method=resample, color="white")

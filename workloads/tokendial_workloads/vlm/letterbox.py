"""The one rule by which a picture of any shape becomes what the tower sees, in training, exported and served.

It travels with exported folders, so it imports numpy and Pillow alone.
"""

import numpy as np
from PIL import ExifTags, Image, ImageOps

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def letterbox(image: Image.Image, width: int, height: int, resample: int = Image.Resampling.BICUBIC) -> Image.Image:
    """Scaled to fit inside, the rest white on both sides alike: 200 × 100 in 48 × 48 is 48 × 24 between white bands.

    It is scaled before it is padded, so that a long thin picture never needs the memory of its square.
    """
    return ImageOps.pad(image, (width, height), method=resample, color="white")


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says, which alone is read: ImageOps.exif_transpose writes all of the EXIF anew."""
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is None:
        return image
    turned = image.transpose(turn)
    # Nothing that reads or writes the image later may turn it again.
    for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        turned.info.pop(name, None)
    return turned


def rgb(image: Image.Image) -> Image.Image:
    """In RGB on white. In as few copies as can be: strangers choose how large the image is."""
    if image.mode.startswith("I"):
        # convert("L") would clip 16-bit grey at 255
        grey = np.asarray(image)
        return Image.fromarray((grey >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layered = image if image.mode == "RGBA" else image.convert("RGBA")
        ground = Image.new("RGB", layered.size, "white")
        ground.paste(layered, mask=layered.getchannel("A"))
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")

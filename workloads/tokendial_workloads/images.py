"""Decoding images from strangers: formats by allow-list, size and shape checked from the header, everything to RGB.

PNG, JPEG, WebP and GIF are read, the last two by their first frame. Transparency is laid on white. Palette, grey and
16-bit grey images become RGB (16 bits keep their upper eight); CMYK is converted without a colour profile; the EXIF
orientation is applied. Everything else, a truncated file included, is refused with a ValueError of one sentence. The
decoder for a refused format is never started, so no child process runs.
"""

import struct
import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from tokendial_workloads.vlm.letterbox import rgb, upright

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 32 * 2**20
MAX_ASPECT = 64.0
# What needs more memory than this must be a file of some bytes a pixel: a photograph has ten times as many.
SMALL_MEMORY = 56 * 2**20
LEAST_BYTES_PER_PIXEL = 0.02
# What the texts of a PNG may unpack to; Pillow's own limit is 64 MiB, which 70 kB of file can become.
PngImagePlugin.MAX_TEXT_MEMORY = 4 * 2**20
# Bytes that decoding takes for each pixel at its peak, copies included; by mode, others are taken for 12.
_PEAK_BYTES = {"1": 5, "L": 5, "RGB": 4, "CMYK": 8, "P": 10}
# What Pillow raises at a damaged file, by where the damage is.
_DAMAGES = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error)


def open_image(path: str | Path, **limits: float) -> Image.Image:
    """Decode a file; raises ValueError that names it."""
    file = Path(path)
    try:
        return decode_image(file.read_bytes(), **limits)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def decode_image(
    content: bytes, max_pixels: float = MAX_PIXELS, max_aspect: float = MAX_ASPECT, max_bytes: float = MAX_BYTES
) -> Image.Image:
    """RGB image of `content`; raises ValueError where it is not an allowed, whole image within the limits."""
    if not content:
        raise ValueError("the image is empty")
    if len(content) > max_bytes:
        raise ValueError(f"the image has {len(content)} bytes; at most {int(max_bytes)} are allowed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _header(content)
        _check_size(image, max_pixels, max_aspect)
        _check_weight(image, len(content))
        kind = image.format
        try:
            image.load()
            image = upright(image)
            return rgb(image)
        except _DAMAGES as error:
            raise ValueError(f"the {kind} image is damaged or truncated: {error}") from error


def _header(content: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"the image is not one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"the image is too large: {error}") from error
    except _DAMAGES as error:
        raise ValueError(f"the image header is damaged: {error}") from error


def _check_size(image: Image.Image, max_pixels: float, max_aspect: float) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"the image is {width} × {height} pixels; at most {int(max_pixels)} pixels are allowed")
    if max(width, height) > max_aspect * min(width, height):
        raise ValueError(f"the image is {width} × {height} pixels; sides may differ at most {max_aspect:g}-fold")


def peak_bytes(image: Image.Image) -> int:
    """Bytes a pixel that decoding an image of this format and mode takes at its peak."""
    return 16 if image.format == "WEBP" else _PEAK_BYTES.get(image.mode, 12)


def _check_weight(image: Image.Image, num_bytes: int) -> None:
    pixels = image.width * image.height
    if pixels * peak_bytes(image) > SMALL_MEMORY and num_bytes < LEAST_BYTES_PER_PIXEL * pixels:
        raise ValueError(
            f"the image is {image.width} × {image.height} pixels in {num_bytes} bytes; one so large has at least "
            f"{LEAST_BYTES_PER_PIXEL} bytes a pixel"
        )

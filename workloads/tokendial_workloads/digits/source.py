"""The handwritten digits that mosaics are made from: scikit-learn's, or a folder of labelled images; split by image.

An image is 8 × 8 ink values, 0 … 255. Within each class the images are ordered by a hash of their pixels, and 60 % go
to train, 20 % to validation and 20 % to test; exact duplicates are dropped first, so no image is in two splits.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, Features, Value
from PIL import Image

from tokendial_workloads.digits.mosaic import DIGIT
from tokendial_workloads.images import open_image

SPLITS = ("train", "validation", "test")
FEATURES = Features(
    {
        "ink": Array2D((DIGIT, DIGIT), "uint8"),
        "label": ClassLabel(names=[str(digit) for digit in range(10)]),
        "sha256": Value("string"),
    }
)


@lru_cache(maxsize=4)
def source_splits(path: str | None = None, invert: bool = False) -> Mapping[str, Dataset]:
    """A `datasets.Dataset` of source images per split; raises ValueError for a folder that cannot be used."""
    ink, labels = _embedded() if path is None else _folder(path, invert)
    records: dict[str, tuple[np.ndarray, int]] = {}
    for image, label in zip(ink, labels, strict=True):
        records.setdefault(hashlib.sha256(image.tobytes()).hexdigest(), (image, int(label)))
    members: dict[str, list[str]] = {split: [] for split in SPLITS}
    for digit in range(10):
        keys = sorted(key for key, (_, label) in records.items() if label == digit)
        if len(keys) < 5:
            raise ValueError(f"data.path {path}: class {digit} has {len(keys)} different images; at least 5 are needed")
        first, second = round(len(keys) * 0.6), round(len(keys) * 0.8)
        for split, chosen in zip(SPLITS, (keys[:first], keys[first:second], keys[second:]), strict=True):
            members[split] += chosen
    return {split: _dataset(keys, records) for split, keys in members.items()}


def digits_by_class(source: Dataset) -> list[np.ndarray]:
    """Ink in [0, 1] as float32 [n, 8, 8] for each class 0 … 9."""
    columns = source.with_format("numpy")
    ink, labels = np.asarray(columns["ink"][:], np.float32) / 255, np.asarray(columns["label"][:])
    return [ink[labels == digit] for digit in range(10)]


def source_digest(source: Dataset) -> str:
    """SHA-256 over the images of a split and their labels."""
    pairs = zip(source["sha256"], source["label"], strict=True)
    return hashlib.sha256("".join(f"{key} {label}\n" for key, label in pairs).encode()).hexdigest()


def _dataset(keys: list[str], records: Mapping[str, tuple[np.ndarray, int]]) -> Dataset:
    columns = {"ink": [records[k][0] for k in keys], "label": [records[k][1] for k in keys], "sha256": keys}
    return Dataset.from_dict(columns, features=FEATURES)


def _embedded() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's file, read without importing scikit-learn: that takes longer than all else here."""
    found = find_spec("sklearn")
    assert found is not None, "scikit-learn is a dependency"
    assert found.origin is not None
    table = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    ink = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8)
    return ink.reshape(-1, DIGIT, DIGIT), table[:, -1].astype(int)


def _folder(path: str, invert: bool) -> tuple[np.ndarray, np.ndarray]:
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"data.path {path} is not a folder; give one with a sub-folder of images for each class 0 … 9")
    missing = [str(digit) for digit in range(10) if not (root / str(digit)).is_dir()]
    if missing:
        raise ValueError(f"data.path {path} has no sub-folder for the classes {', '.join(missing)}")
    files = [(file, digit) for digit in range(10) for file in sorted((root / str(digit)).iterdir()) if file.is_file()]
    ink = [_shrink(open_image(file), invert) for file, _ in files]
    return np.array(ink, np.uint8).reshape(-1, DIGIT, DIGIT), np.array([digit for _, digit in files])


def _shrink(image: Image.Image, invert: bool) -> np.ndarray:
    """Grey 8 × 8 of the whole image, each pixel the average of what it covers."""
    small = np.asarray(image.convert("L").resize((DIGIT, DIGIT), Image.Resampling.BOX))
    return 255 - small if invert else small

"""Versions of what a run depends on."""

import platform
from functools import cache
from importlib import metadata

PACKAGES = (
    "tokendial", "torch", "ray", "deepspeed", "transformers", "tokenizers", "datasets", "peft", "triton", "mlflow",
    "numpy",
)  # fmt: skip


@cache
def versions() -> dict[str, str]:
    """Installed versions by package name; packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

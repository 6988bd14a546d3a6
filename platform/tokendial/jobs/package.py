"""What travels to a cluster: this tokendial as one zip that Ray puts on PYTHONPATH, and a run's own files as another.

Archives are reproducible (sorted names, one date), so an unchanged tokendial is uploaded once.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from tokendial.experiments import ConfigError, declared

PACKAGES = ("tokendial", "tokendial_workloads", "tokendial_kernels")
GROUPS = ("tokendial.experiments", "tokendial.workloads")
MAX_MODULE_BYTES = 4 << 20
_DATE = (1980, 1, 1, 0, 0, 0)


def code() -> bytes:
    """tokendial as it is here, edits included, with the metadata that entry points are read from."""
    return archive({**dict(_sources()), **_metadata()})


def modules(*names: str) -> dict[str, bytes]:
    """The user's own modules behind `module:object` and `file.py:object` names, and modules beside them.

    Raises ConfigError for a file that is not under the working folder, and where they are too large.
    """
    found: dict[str, bytes] = {}
    folder = Path.cwd()
    for name in names:
        # From the right: an absolute path of Windows has a colon of its own.
        module, colon, _ = name.rpartition(":")
        top = module.partition(".")[0]
        if not colon or top in PACKAGES:
            continue
        if module.endswith(".py"):
            own = [_under(folder, module)]
        elif (folder / f"{top}.py").exists() or (folder / top).is_dir():
            own = list((folder / top).rglob("*.py"))
        else:
            # Installed, here and therefore on the cluster too.
            continue
        paths = [*folder.glob("*.py"), *own]
        found |= {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    size = sum(map(len, found.values()))
    if size > MAX_MODULE_BYTES:
        raise ConfigError(f"modules beside {names[0]!r} hold {size} bytes; the most sent is {MAX_MODULE_BYTES}")
    return found


def _under(folder: Path, place: str) -> Path:
    """A file by its path from the folder; the cluster finds it by the same path."""
    path = Path(place)
    if path.is_absolute() or ".." in path.parts or not (folder / path).is_file():
        raise ConfigError(
            f"{place!r} is no file under the working folder, which is what travels; give its path from here"
        )
    return folder / path


def archive(files: Mapping[str, bytes]) -> bytes:
    """A zip of files by name, the same bytes for the same content."""
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w") as bundle:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            bundle.writestr(entry, files[name])
    return box.getvalue()


def _sources() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None, f"{package} is part of tokendial"
        for location in spec.submodule_search_locations or ():
            root = Path(location)
            for path in sorted(root.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    yield f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _metadata() -> dict[str, bytes]:
    """`tokendial-VERSION.dist-info`, which hides that of an older tokendial on the cluster."""
    installed = metadata.distribution("tokendial")
    lines: list[str] = []
    for group in GROUPS:
        own = {name: value for name, value in declared(group).items() if value.partition(".")[0] in PACKAGES}
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in sorted(own.items())), ""]
    folder = f"tokendial-{installed.version}.dist-info"
    about = installed.read_text("METADATA") or ""
    return {f"{folder}/METADATA": about.encode(), f"{folder}/entry_points.txt": "\n".join(lines).encode()}

"""The repository's shape: folders, file sizes, public names, and nothing that shadows Python's `platform`."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = ("platform", "workloads", "kernels")
FOLDERS = {".ci", "benchmarks", "clusters", "dashboards", "docs", "kernels", "platform", "tests", "workloads"}
MAX_LINES = 400


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


FILES = tracked()
PYTHON = [path for path in FILES if path.suffix == ".py"]


def test_nothing_shadows_the_standard_platform_module() -> None:
    assert not any((ROOT / root / "__init__.py").exists() for root in (*SOURCE_ROOTS, "tests"))
    assert not (ROOT / "tests" / "platform").exists()
    program = "import platform; print(platform.system())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tests_have_unique_names_and_are_no_packages() -> None:
    tests = [path for path in PYTHON if path.is_relative_to(ROOT / "tests")]
    assert [path for path in tests if path.name == "__init__.py"] == []
    repeated = [name for name, times in Counter(path.name for path in tests).items() if times > 1]
    assert repeated == []


def test_top_level_folders_are_those_of_the_design() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES if path.parent != ROOT} <= FOLDERS


def test_python_files_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in PYTHON}
    assert {name: number for name, number in lines.items() if number > MAX_LINES} == {}


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    # `ray` is the user of Ray's own images.
    machine = re.compile(r"(?<![\w.~}])/(?:work|root|home/(?!user\b|ray\b)[a-z]\w*|Users/\w+)/[\w.-]+")
    found = []
    for path in FILES:
        if path.suffix in {".png", ".ico", ".npz"} or path == Path(__file__):
            continue
        text = path.read_text("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in machine.finditer(text)]
    assert found == []


def exported(path: Path) -> tuple[list[str] | None, set[str]]:
    """`__all__` of a module (None where it has none), and the names bound at its top level."""
    names: list[str] | None = None
    bound: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                names = list(ast.literal_eval(node.value))
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.Assign(targets=targets):
                bound |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                bound.add(name)
            case ast.Import() | ast.ImportFrom():
                bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return names, bound


SOURCES = [path for path in PYTHON if path.relative_to(ROOT).parts[0] in SOURCE_ROOTS]


PUBLIC = [path for path in SOURCES if exported(path)[0] is not None]


@pytest.mark.parametrize("path", PUBLIC, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_exist_and_are_sorted(path: Path) -> None:
    names, bound = exported(path)
    assert names is not None
    assert list(names) == sorted(set(names), key=lambda name: (not name.isupper(), name.lower() == name, name))
    assert "__getattr__" in bound or set(names) <= bound


def test_no_placeholder_is_left_in_what_people_read() -> None:
    pages = [path for path in FILES if path.suffix == ".md"]
    assert [str(path.relative_to(ROOT)) for path in pages if "@@" in path.read_text("utf-8")] == []


def test_packages_that_gather_names_say_which_are_public() -> None:
    silent = []
    for path in SOURCES:
        if path.name == "__init__.py":
            names, _ = exported(path)
            gathers = any(isinstance(node, ast.ImportFrom) for node in ast.parse(path.read_text()).body)
            silent += [str(path.relative_to(ROOT))] if gathers and names is None else []
    assert silent == []

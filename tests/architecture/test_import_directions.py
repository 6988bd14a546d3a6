"""Dependencies point one way, and each foreign system is touched in one place: read from the source with `ast`."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = ("platform", "workloads", "kernels")
PACKAGES = {"tokendial", "tokendial_workloads", "tokendial_kernels"}

# Who may import a foreign system: one module or one small package each. `environment` only builds DeepSpeed's operator,
# and `bench` measures the systems themselves.
OWNERS = {
    "deepspeed": ("tokendial.train", "tokendial.environment", "tokendial.bench"),
    "mlflow": ("tokendial.tracking",),
    "optuna": ("tokendial.search",),
    "ray.serve": ("tokendial.serve", "tokendial.bench"),
    "ray.train": ("tokendial.train", "tokendial.search", "tokendial.bench"),
    "ray.tune": ("tokendial.search",),
    "ray.util.metrics": ("tokendial.gauges",),
    "triton": ("tokendial_kernels",),
}


def modules() -> Iterator[tuple[str, Path]]:
    for root in SOURCE_ROOTS:
        for path in sorted((ROOT / root).rglob("*.py")):
            parts = path.relative_to(ROOT / root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(module: str, path: Path) -> Iterator[str]:
    """Dotted names a module imports, inside functions and type-checking blocks too."""
    return imports_of(module, path, ast.walk(ast.parse(path.read_text(), str(path))))


def imports_of(module: str, path: Path, nodes: Iterable[ast.AST]) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def inside(name: str, owner: str) -> bool:
    return name == owner or name.startswith(f"{owner}.")


MODULES = dict(modules())
IMPORTS = {module: sorted(set(imports(module, path))) for module, path in MODULES.items()}


def test_the_walk_sees_all_three_packages() -> None:
    assert {module.partition(".")[0] for module in MODULES} == PACKAGES


@pytest.mark.parametrize("module", [m for m in MODULES if inside(m, "tokendial_kernels")])
def test_kernels_import_torch_triton_and_liger_only(module: str) -> None:
    roots = {name.partition(".")[0] for name in IMPORTS[module]}
    assert roots - sys.stdlib_module_names <= {"torch", "triton", "liger_kernel", "tokendial_kernels"}


@pytest.mark.parametrize("module", [m for m in MODULES if inside(m, "tokendial_workloads")])
def test_workloads_use_only_contracts_and_schedules_of_the_platform(module: str) -> None:
    allowed = ("tokendial.contracts", "tokendial.schedule", "tokendial_kernels", "tokendial_workloads")
    ours = [name for name in IMPORTS[module] if name.partition(".")[0] in PACKAGES]
    assert [name for name in ours if not any(inside(name, place) for place in allowed)] == []
    assert [name for name in IMPORTS[module] if name.partition(".")[0] == "ray"] == []


@pytest.mark.parametrize("module", [m for m in MODULES if inside(m, "tokendial")])
def test_the_platform_finds_workloads_and_kernels_by_name_only(module: str) -> None:
    roots = {name.partition(".")[0] for name in IMPORTS[module]}
    assert not roots & {"tokendial_workloads", "tokendial_kernels"}


@pytest.mark.parametrize("system", OWNERS)
def test_a_foreign_system_is_touched_in_one_place(system: str) -> None:
    users = [module for module, names in IMPORTS.items() if any(inside(name, system) for name in names)]
    assert [user for user in users if not any(inside(user, owner) for owner in OWNERS[system])] == []


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Counting imports at module level only: those are what breaks."""
    edges: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        found = imports_of(module, path, ast.parse(path.read_text()).body)
        targets = {name if name in MODULES else name.rpartition(".")[0] for name in found}
        edges[module] = (targets & MODULES.keys()) - {module}
    while leaves := {module for module, targets in edges.items() if not targets & edges.keys()}:
        edges = {module: targets for module, targets in edges.items() if module not in leaves}
    assert edges == {}


PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_diagram_of_the_architecture_page_is_what_is_imported() -> None:
    """Its folders are there, and its arrows are all that points from one package to another."""
    diagram = re.search(r"## Parts and their imports\n\n```\n(.*?)```", PAGE, re.DOTALL)
    assert diagram is not None
    lines = diagram[1].splitlines()
    folders = [line.split()[0] for line in lines[::2]]
    assert folders == ["platform/tokendial", "workloads/tokendial_workloads", "kernels/tokendial_kernels"]
    for folder, line in zip(folders, lines[::2], strict=True):
        assert [name for name in re.findall(r" (\w+/)", line) if not (ROOT / folder / name).is_dir()] == []
    asked = re.fullmatch(r"  ↑ (.*) only", lines[1])
    assert asked is not None
    of_workloads = {name for module in MODULES if inside(module, "tokendial_workloads") for name in IMPORTS[module]}
    assert {name.split(".")[1] for name in of_workloads if inside(name, "tokendial")} == set(asked[1].split(", "))
    assert lines[3] == "  ↓"
    assert any(inside(name, "tokendial_kernels") for name in of_workloads)


PLACES = {
    "ray.train": ("`ray.train` in\n`train/ray_trainer.py`", ("train.ray_trainer",)),
    "deepspeed": ("DeepSpeed in `train/engine.py`", ("train.engine",)),
    "ray.tune": ("Ray Tune in `search/tuning.py`", ("search.tuning",)),
    "ray.serve": (
        "Ray Serve in three modules of `serve/`\n(`application.py`, `endpoint.py`, `declared.py`)",
        ("serve.application", "serve.declared", "serve.endpoint"),
    ),
    "ray.util.metrics": ("Ray's metrics in `gauges.py`", ("gauges",)),
}


@pytest.mark.parametrize("system", PLACES)
def test_the_architecture_page_says_where_a_foreign_system_is_touched(system: str) -> None:
    """Names that only annotations use, the bench and the build of DeepSpeed's operator are left out, as in OWNERS."""
    words, modules = PLACES[system]
    assert words in PAGE
    left_out = ("tokendial.bench", "tokendial.environment")
    users = [m for m in MODULES if not any(inside(m, name) for name in left_out) and _loads(m, system)]
    assert users == [f"tokendial.{module}" for module in modules]


def _loads(module: str, system: str) -> bool:
    """Whether a module imports a foreign system when it runs."""
    tree = ast.parse(MODULES[module].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    return any(inside(name, system) for name in imports_of(module, MODULES[module], ast.walk(tree)))

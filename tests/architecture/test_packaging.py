"""One distribution, exact pins for all it needs, and a client that installs without torch on three systems."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
PINS = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in CONSTRAINTS)}
EXTRAS = PROJECT["project"]["optional-dependencies"]
REQUIREMENTS = [
    Requirement(line)
    for line in (
        *PROJECT["build-system"]["requires"],
        *PROJECT["project"]["dependencies"],
        *(line for extra in EXTRAS.values() for line in extra),
    )
]
UNREACHABLE = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError|Max retries|timed out")
PLATFORMS = {
    "Linux x86_64": [f"manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_17", "2014")],
    "macOS arm64": ["macosx_14_0_arm64"],
    "Windows": ["win_amd64"],
}


def test_constraints_are_exact_and_named_once() -> None:
    assert all(re.fullmatch(r"[a-z0-9-]+==([0-9]+!)?[0-9][0-9a-z.]*", line) for line in CONSTRAINTS)
    assert len(PINS) == len(CONSTRAINTS)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_dependency_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    pin = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(Version(pin))


def test_everything_the_installed_extras_pull_in_is_pinned() -> None:
    """The closure over metadata of what is installed here; `gpu` is not, and needs nothing further."""
    todo, seen = [("tokendial", frozenset(EXTRAS) - {"gpu"})], set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            scopes = [{"extra": extra} for extra in (*extras, "")]
            if needed.marker is None or any(needed.marker.evaluate(scope) for scope in scopes):
                todo.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    assert {name for name, _ in seen} - {"tokendial"} <= PINS.keys()


def test_installed_releases_are_the_pinned_ones() -> None:
    installed = {canonicalize_name(found.metadata["Name"]): found.version for found in metadata.distributions()}
    differing = {
        name: (installed[name], pin)
        for name, pin in PINS.items()
        if name in installed and Version(installed[name]).public != Version(pin).public
    }
    assert differing == {}


def test_the_client_needs_no_torch_ray_or_transformers() -> None:
    client = {canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"]}
    assert client == {"matplotlib", "mlflow-skinny", "numpy", "plotly", "pydantic", "rich", "typer"}


def test_packages_without_wheels_elsewhere_are_for_linux_only() -> None:
    for system in ("darwin", "win32"):
        left_out = {r.name for r in REQUIREMENTS if r.marker and not r.marker.evaluate({"sys_platform": system})}
        assert left_out == {"deepspeed", "liger-kernel", "ninja", "triton"}


def test_entry_points_are_installed_as_declared() -> None:
    for group, declared in PROJECT["project"]["entry-points"].items():
        assert {point.name: point.value for point in metadata.entry_points(group=group)} == declared


def resolve(target: Path, tags: list[str]) -> subprocess.Popen[str]:
    options = ["--dry-run", "--retries", "2", "--timeout", "30", "-c", str(ROOT / "constraints.txt")]
    options += ["--target", str(target), "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
    options += [option for tag in tags for option in ("--platform", tag)]
    client = [*PROJECT["project"]["dependencies"], "colorama"]
    return subprocess.Popen(
        [sys.executable, "-m", "pip", "install", "--quiet", *options, *client],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_client_resolves_to_wheels_on_linux_macos_and_windows(tmp_path: Path) -> None:
    """pip judges markers for this interpreter, so `colorama`, which Windows alone needs, is named by hand."""
    running = {name: resolve(tmp_path / name, tags) for name, tags in PLATFORMS.items()}
    outputs = {name: process.communicate()[0] for name, process in running.items()}
    failed = {name: outputs[name][-2000:] for name, process in running.items() if process.returncode}
    if failed and all(UNREACHABLE.search(outputs[name]) for name in failed):
        pytest.skip("PyPI is unreachable from here, so wheels of other systems cannot be looked up")
    assert failed == {}


@pytest.mark.slow
def test_a_fresh_client_install_lists_experiments_without_torch(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", ROOT]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode and UNREACHABLE.search(done.stdout + done.stderr):
        pytest.skip("PyPI is unreachable from here, so nothing can be installed")
    assert done.returncode == 0, done.stderr
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode
    listed = subprocess.run(
        [python, "-m", "tokendial", "train", "--list"], cwd=tmp_path, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    assert "digits.demo" in listed.stdout

"""Test the kernels, then measure them; a red test means no figures.

    python -m tokendial_kernels.bench [--device cpu|cuda] [--output benchmarks/kernels.json] [--no-compiled]

Prints a table, and keeps the rows under the device's name with versions and commit; other devices' rows stay. Rows are
kept as they come, without torch.compile's first, so that a run that is cut short has what it had by then.
Needs torch, triton and pytest, and the three source roots in PYTHONPATH where nothing is installed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tokendial_kernels.bench import cpu, cuda
from tokendial_kernels.bench.contest import Contest, Row, run_contest
from tokendial_kernels.cross_entropy import HAS_LIGER

Make = Callable[[], Contest]
Kept = Callable[[Sequence[Row], Sequence[str]], None]


def run_tests(tests: Path, on_cuda: bool) -> bool:
    """Run the ops' tests for the device in a process of their own, and say whether all passed."""
    command, environment = command_of(tests, on_cuda)
    return subprocess.run(command, env=os.environ | environment, check=False).returncode == 0


def command_of(tests: Path, on_cuda: bool) -> tuple[list[str], dict[str, str]]:
    """The command, and what it wants in its environment.

    Tests of the benchmark and its record are not among them: a record that falls short must not bar its renewal. Nor
    do plugins that happen to be installed, or what another release warns of.
    """
    marks = "gpu" if on_cuda else "not gpu and not slow"
    command = [sys.executable, "-m", "pytest", str(tests), "-m", marks, "-x", "--ignore-glob=*test_kernel_bench.py"]
    return command, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-W default"}


def provenance(on_cuda: bool) -> dict[str, Any]:
    """Device, versions and commit of a run."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "triton", "liger-kernel"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {"device": device_name(on_cuda), "versions": versions, "commit": commit()}


def device_name(on_cuda: bool) -> str:
    """The GPU's name, or the processor's with its instruction set and the threads used."""
    if on_cuda:
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread"


def commit() -> str:
    """The checked-out commit, marked where kernels have uncommitted changes; "unknown" outside of a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    if head.returncode:
        return "unknown"
    command = ["git", "status", "--porcelain", "--", str(here.parent)]
    changes = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    return head.stdout.strip() + (" with changes" if changes.stdout.strip() else "")


def line_of(row: Row) -> str:
    """One line of the table."""
    rate = f"{row.gigabytes_per_s:8.1f} GB/s" if row.gigabytes_per_s else " " * 13
    memory = f"{row.peak_memory_mib:8.0f} MiB" if row.peak_memory_mib is not None else ""
    verdicts = "; ".join(f"{target} {verdict}" for target, verdict in row.targets.items())
    return (
        f"{row.op:15} {row.direction:8} {row.shape:46} {row.provider:18} {row.timing.median_ms:9.4f} ms "
        f"{row.of_floor:6.1%} of {row.floor_name} {row.over_eager:6.2f}x eager {rate}{memory} {verdicts}"
    ).rstrip()


def measure(on_cuda: bool, with_compiled: bool, kept: Kept) -> tuple[list[Row], list[str]]:
    """Run every contest of the device, and tell `kept` all rows and failures after each; returns them.

    First all without torch.compile, which takes minutes, then with it those that have it.
    """
    rows: dict[tuple[str, ...], Row] = {}
    failed: list[str] = []
    for compiled in (False, True)[: 1 + with_compiled]:
        for make in (cuda if on_cuda else cpu).contests(compiled):
            # One contest that fails, or one peer of it, costs no other its rows.
            try:
                for row in _rows(make, compiled, on_cuda):
                    print(line_of(row), flush=True)
                    rows[row.op, row.direction, row.shape, row.provider] = row
            except Exception as error:
                traceback.print_exc()
                failed.append(f"{_name(make)}: {type(error).__name__}: {error}")
            kept(list(rows.values()), failed)
    return list(rows.values()), failed


def _rows(make: Make, compiled: bool, on_cuda: bool) -> list[Row]:
    contest = make()
    return run_contest(contest, on_cuda) if not compiled or "compiled" in contest.providers else []


def _name(make: Make) -> str:
    return f"{make.func.__name__}{make.args}" if isinstance(make, partial) else getattr(make, "__name__", repr(make))


def keep(output: Path, origin: dict[str, Any], rows: Sequence[Row], failed: Sequence[str] = ()) -> None:
    """Write the rows under the device's name; other devices' rows stay as they are."""
    runs = json.loads(output.read_text()) if output.exists() else {}
    told = {"failed": list(failed)} if failed else {}
    runs[origin["device"]] = {**origin, **told, "rows": [asdict(row) for row in rows]}
    part = output.with_name(f"{output.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps(runs, indent=1, sort_keys=True) + "\n")
    # A run may be ended at any moment.
    part.replace(output)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 after measuring, 1 if a test is red or a contest failed, 2 on a device or path that is not there."""
    arguments = _arguments(argv)
    on_cuda = arguments.device == "cuda"
    if on_cuda and not torch.cuda.is_available():
        print("device is 'cuda', but torch sees no GPU; admissible here: 'cpu'", file=sys.stderr)
        return 2
    if not arguments.tests.is_dir():
        print(f"tests is {arguments.tests}, which is not a folder; run from the repository's root", file=sys.stderr)
        return 2
    if not run_tests(arguments.tests, on_cuda):
        print("the kernels' tests are red: nothing is measured", file=sys.stderr)
        return 1
    if not on_cuda:
        torch.set_num_threads(1)
    origin = provenance(on_cuda)
    origin["commit"] = arguments.commit or origin["commit"]
    print(f"{origin['device']}; {origin['versions']}; commit {origin['commit']}")
    if on_cuda and not HAS_LIGER:
        print("liger-kernel is not installed: cross_entropy is not measured, and nothing is held against Liger")
    rows, failed = measure(on_cuda, not arguments.no_compiled, partial(keep, arguments.output, origin))
    for row in rows:
        for target, verdict in row.targets.items():
            if not verdict.startswith("met"):
                print(f"{row.op} {row.direction} {row.shape}: {target} {verdict}")
    for failure in failed:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failed else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tokendial_kernels.bench", description="Test, then measure.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/kernels.json"))
    parser.add_argument("--tests", type=Path, default=Path("tests/kernels"), help="folder of the ops' tests")
    parser.add_argument("--no-compiled", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--commit", help="what is measured, where the copy at hand is no checkout")
    return parser.parse_args(argv)

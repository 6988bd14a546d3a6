"""Test the kernels, then measure them; a red test means no figures.

    python -m tokendial_kernels.bench [--device cpu|cuda] [--output benchmarks/kernels.json] [--no-compiled]

Prints a table, and keeps the rows under the device's name with versions and commit; other devices' rows stay.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tokendial_kernels.bench import cpu, cuda
from tokendial_kernels.bench.contest import Row, run_contest


def run_tests(tests: Path, on_cuda: bool) -> bool:
    """Run the ops' tests for the device in a process of their own, and say whether all passed.

    Tests of the benchmark and its record are not among them: a record that falls short must not bar its renewal.
    """
    marks = "gpu" if on_cuda else "not gpu and not slow"
    command = [sys.executable, "-m", "pytest", str(tests), "-m", marks, "-x", "--ignore-glob=*test_kernel_bench.py"]
    return subprocess.run(command, check=False).returncode == 0


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
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
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


def measure(on_cuda: bool, with_compiled: bool) -> list[Row]:
    """Run every contest of the device, printing rows as they come."""
    rows = []
    for contest in (cuda if on_cuda else cpu).contests(with_compiled):
        for row in run_contest(contest, on_cuda):
            print(line_of(row), flush=True)
            rows.append(row)
    return rows


def keep(output: Path, origin: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write the rows under the device's name; other devices' rows stay as they are."""
    runs = json.loads(output.read_text()) if output.exists() else {}
    runs[origin["device"]] = {**origin, "rows": [asdict(row) for row in rows]}
    output.write_text(json.dumps(runs, indent=1, sort_keys=True) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 after measuring, 1 if a test is red, 2 on a device or path that is not there."""
    parser = argparse.ArgumentParser(prog="python -m tokendial_kernels.bench", description="Test, then measure.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/kernels.json"))
    parser.add_argument("--tests", type=Path, default=Path("tests/kernels"), help="folder of the ops' tests")
    parser.add_argument("--no-compiled", action="store_true", help="leave out torch.compile, which takes minutes")
    arguments = parser.parse_args(argv)
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
    print(f"{origin['device']}; {origin['versions']}; commit {origin['commit']}")
    rows = measure(on_cuda, not arguments.no_compiled)
    keep(arguments.output, origin, rows)
    missed = [f"{row.op} {row.shape}: {key} {verdict}" for row in rows for key, verdict in row.targets.items()]
    for line in (line for line in missed if "missed" in line):
        print(f"missed: {line}")
    return 0

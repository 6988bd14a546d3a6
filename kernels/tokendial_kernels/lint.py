"""Compile-only proof of the Triton kernels, with no GPU: builds for sm_80, sm_90 and sm_100 at the shapes that matter.

    python -m tokendial_kernels.lint [--output benchmarks/kernels_lint.json] [--archs 80 90 100]

Every kernel must build without spills and within the shared memory of its architecture; memory-bound kernels must load
16 bytes at a time and dots must run on tensor cores. The report holds registers, shared memory and occupancy. The
arguments of each case are typed and marked as divisible by 16 just as a launch would infer, or wide loads would vanish.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tokendial_kernels.lint_cases import CASES, Case

ARCHS = (80, 90, 100)
# Shared memory one program may have, and a multiprocessor has, in KiB; from the CUDA programming guide.
SHARED_LIMIT_KIB = {80: (163, 164), 90: (227, 228), 100: (227, 228)}
TENSOR_CORE = {80: r"HMMA", 90: r"HGMMA|HMMA", 100: r"UTCHMMA|UTCQMMA|HMMA"}
WIDE_LOAD = r"LDG\.E[.\w]*\.128|LDGSTS[.\w]*\.128"
NUM_REGISTERS, MAX_WARPS = 65536, 64


@dataclass(frozen=True)
class Report:
    """What one kernel costs on one architecture."""

    case: str
    arch: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    occupancy: float
    wide_loads: int
    tensor_core_dots: int


def compile_case(case: Case, arch: int) -> Any:
    """Build one case to a cubin, with the specialisations that a launch with its values would infer."""
    names = case.kernel.arg_names
    signature = {name: case.type_of(name) for name in names}
    aligned = [index for index, name in enumerate(names) if case.is_aligned(name)]
    source = ASTSource(
        case.kernel, signature, dict(case.constants), {(index,): [["tt.divisibility", 16]] for index in aligned}
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def report_case(case: Case, arch: int) -> Report:
    """Compile one case and read its resources and instructions from the cubin."""
    compiled = compile_case(case, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        dump = _cuobjdump("-res-usage", cubin.name) + _cuobjdump("-sass", cubin.name)
    resources = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", dump)
    assert resources, f"no resource line for {case.name} on sm_{arch}"
    registers, stack, local = map(int, resources.groups())
    shared = compiled.metadata.shared
    return Report(
        case.name,
        arch,
        registers,
        stack + local,
        shared,
        occupancy(registers, shared, case.num_warps, arch),
        len(re.findall(WIDE_LOAD, dump)),
        len(re.findall(TENSOR_CORE[arch], dump)),
    )


def _cuobjdump(option: str, path: str) -> str:
    command = [knobs.nvidia.cuobjdump.path, option, path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def occupancy(registers: int, shared_bytes: int, num_warps: int, arch: int) -> float:
    """Share of a multiprocessor's 64 warps that can be resident at once; registers go by 8 a thread."""
    by_registers = NUM_REGISTERS // (-(-registers // 8) * 8 * 32 * num_warps)
    by_shared = SHARED_LIMIT_KIB[arch][1] // (-(-shared_bytes // 1024) + 1)
    return min(by_registers, by_shared, MAX_WARPS // num_warps, 32) * num_warps / MAX_WARPS


def faults(case: Case, report: Report) -> list[str]:
    """What is wrong with a kernel, in words; empty when nothing is."""
    found = []
    if report.spilled_bytes:
        found.append(f"spills {report.spilled_bytes} bytes")
    limit = SHARED_LIMIT_KIB[report.arch][0] * 1024
    if report.shared_bytes > limit:
        found.append(f"needs {report.shared_bytes} bytes of shared memory of {limit}")
    if case.memory_bound and not report.wide_loads:
        found.append("has no 128-bit loads")
    if case.has_dots and not report.tensor_core_dots:
        found.append("has no tensor-core instructions")
    return [f"{report.case} on sm_{report.arch} {fault}" for fault in found]


def lint(archs: Sequence[int] = ARCHS) -> tuple[list[Report], list[str]]:
    """Reports of every case on every architecture, and the faults found."""
    reports, found = [], []
    for case in CASES:
        for arch in archs:
            report = report_case(case, arch)
            reports.append(report)
            found += faults(case, report)
    return reports, found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report, keep it if asked to, and return 1 if any kernel is at fault."""
    parser = argparse.ArgumentParser(prog="python -m tokendial_kernels.lint", description="Compile-only kernel lint.")
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    parser.add_argument("--archs", type=int, nargs="+", default=list(ARCHS), choices=ARCHS)
    arguments = parser.parse_args(argv)
    reports, found = lint(arguments.archs)
    print(f"{'kernel':34} arch  regs  shared  occupancy  128-bit loads  tensor-core")
    for report in reports:
        print(
            f"{report.case:34} {report.arch:4} {report.registers:5} {report.shared_bytes:7} {report.occupancy:10.2f} "
            f"{report.wide_loads:14} {report.tensor_core_dots:12}"
        )
    if arguments.output:
        rows = {"triton": triton.__version__, "reports": [asdict(report) for report in reports]}
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
    for fault in found:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""The kernels compile for GPUs that are not here, cost what was recorded, and the lint sees what it should."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

RECORDED = Path(__file__).parents[2] / "benchmarks" / "kernels_lint.json"

pytest.importorskip("triton", reason="the lint compiles with triton; this platform has none")

from tokendial_kernels import lint  # noqa: E402
from triton.runtime.jit import create_function_from_signature  # noqa: E402


def assert_as_recorded(archs: tuple[int, ...]) -> None:
    reports, found = lint.lint(archs)
    assert found == []
    recorded = json.loads(RECORDED.read_text())
    assert recorded["triton"] == lint.triton.__version__, "triton changed: run the lint with --output and look at it"
    rows = {(row["case"], row["arch"]): row for row in recorded["reports"]}
    assert {case for case, _ in rows} == {report.case for report in reports}
    for report in reports:
        row = rows[report.case, report.arch]
        assert abs(report.registers - row["registers"]) <= 8, report
        assert report.shared_bytes == row["shared_bytes"], report
        assert report.occupancy >= row["occupancy"], report


def test_kernels_compile_for_sm_90_as_recorded():
    assert_as_recorded((90,))


@pytest.mark.slow
def test_kernels_compile_for_every_architecture_as_recorded():
    assert_as_recorded(lint.ARCHS)


def test_the_lint_names_every_kind_of_fault():
    case = replace(lint.CASES[0], memory_bound=True, has_dots=True)
    good = lint.Report(case.name, 90, 32, 0, 0, 1.0, 4, 8)
    assert lint.faults(case, good) == []
    bad = replace(good, spilled_bytes=8, shared_bytes=228 * 1024, wide_loads=0, tensor_core_dots=0)
    assert len(lint.faults(case, bad)) == 4


def test_without_alignment_marks_the_wide_loads_vanish():
    case = next(case for case in lint.CASES if case.name == "swiglu")
    odd = replace(case, values={name: value + 1 for name, value in case.values.items()})
    assert lint.report_case(case, 90).wide_loads > 0
    assert lint.report_case(odd, 90).wide_loads == 0


@pytest.mark.parametrize("case", lint.CASES, ids=lambda case: case.name)
def test_a_kernel_serves_any_number_of_images(case: lint.Case):
    backend = lint.triton.compiler.make_backend(lint.GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(case.kernel.signature, case.kernel.params, backend)
    varying = {"batch_size", "num_rows"}
    seen = [bind(*(many if name in varying else 16 for name in case.kernel.arg_names))[1] for many in (1, 3, 16)]
    assert seen[0] == seen[1] == seen[2]


def test_occupancy_is_bounded_by_registers_and_shared_memory():
    assert lint.occupancy(32, 0, 8, 90) == 1.0
    assert lint.occupancy(128, 0, 8, 90) == 0.25
    assert lint.occupancy(32, 100 * 1024, 8, 90) == 0.25

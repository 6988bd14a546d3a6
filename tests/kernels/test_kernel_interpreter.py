"""Runs the Triton kernels' suite on a CPU, in a process of its own: the choice is made when kernels are defined."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("kernel_suite.py")


def test_kernels_agree_with_float64_under_the_interpreter():
    pytest.importorskip("triton", reason="the kernels need triton; this platform has none")
    command = [sys.executable, "-m", "pytest", str(SUITE), "-x", "--durations=5"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout

"""Configuration, schedules, curves and the command line work where torch, ray, transformers and mlflow are absent."""

import json
import subprocess
import sys
import textwrap

import pytest

BLOCKER = """
import importlib.abc, sys
HEAVY = {"torch", "ray", "transformers", "mlflow", "deepspeed", "triton", "datasets", "peft", "sklearn", "pandas"}
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"{name} is heavy and must not be imported here")
sys.meta_path.insert(0, Blocker())
"""

LIGHT = (
    "tokendial",
    "tokendial.api",
    "tokendial.cli",
    "tokendial.contracts",
    "tokendial.curve",
    "tokendial.doctor",
    "tokendial.environment",
    "tokendial.experiments",
    "tokendial.ledger",
    "tokendial.metrics",
    "tokendial.resolve",
    "tokendial.runs",
    "tokendial.schedule",
    "tokendial.schedule.stats",
    "tokendial.serve.autoscaling",
    "tokendial.serve.batching",
    "tokendial.serve.costs",
    "tokendial.serve.governor",
    "tokendial.serve.keys",
    "tokendial.serve.ladder",
    "tokendial.serve.options",
    "tokendial.serve.replay",
    "tokendial.serve.schema",
    "tokendial.serve.terms",
)


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments], capture_output=True, text=True, timeout=300
    )


def test_light_modules_import_with_heavy_packages_blocked() -> None:
    done = python(f"{BLOCKER}\nimport importlib\nfor name in {LIGHT!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_every_experiment_and_workload_resolves_with_heavy_packages_blocked() -> None:
    program = f"""{BLOCKER}
import json
from importlib.metadata import entry_points
from tokendial.experiments import experiment_names, workload
from tokendial.resolve import resolve
configs = [resolve(name, machine_cpus=None) for name in experiment_names()]
workloads = [workload(point.name).name for point in entry_points(group="tokendial.workloads")]
print(json.dumps([[config.experiment for config in configs], workloads]))
"""
    done = python(program)
    assert done.returncode == 0, done.stderr
    experiments, workloads = json.loads(done.stdout)
    assert {"digits", "digits.demo", "digits.tiny", "digits.twins", "vlm.paper"} <= set(experiments)
    assert set(workloads) == {"digits", "captions.openmoji"}


@pytest.mark.parametrize("command", ["--help", "train --list", "train digits --help", "train --help"])
def test_the_command_line_lists_and_explains_with_heavy_packages_blocked(command: str) -> None:
    program = f"{BLOCKER}\nfrom tokendial.cli import main\nsys.argv[1:] = {command.split()!r}\nmain()"
    done = python(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_kernels_work_where_triton_is_absent() -> None:
    program = BLOCKER.replace('"torch", ', "") + textwrap.dedent("""
        import tokendial_kernels
        for name in tokendial_kernels.__all__:
            getattr(tokendial_kernels, name)
    """)
    done = python(program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("module", "limit_s"), [("tokendial", 0.3), ("tokendial.cli", 1.0)])
def test_imports_are_fast(module: str, limit_s: float) -> None:
    """Processor seconds, best of three fresh processes, so that a busy machine does not decide."""
    program = f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)"
    assert min(float(python(program).stdout) for _ in range(3)) <= limit_s

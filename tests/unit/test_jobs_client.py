"""The client as a laptop has it: torch, ray, transformers and MLflow's server cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import importlib.abc, sys
HEAVY = {"torch", "ray", "transformers", "mlflow", "deepspeed", "triton", "datasets", "peft", "sklearn", "pandas"}
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"{name} is heavy and must not be imported here")
sys.meta_path.insert(0, Blocker())
from tokendial.jobs import evaluation_order, search_order, serving_order, training_order
from tokendial.jobs.package import code
from tokendial.resolve import resolve
for name in ("digits.tiny", "captions.tiny", "vlm.paper"):
    training_order(resolve(name, machine_cpus=None))
search_order("digits", ["seed=0,1"], {}, None, None)
evaluation_order("run", {}), serving_order("model", (), {})
print(len(code()))
"""
AWAY = "from tokendial.cli import main; import sys; sys.argv = ['tokendial', *{arguments}]; main()"


def test_orders_are_made_and_packed_without_heavy_packages() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2_000_000


def test_a_cluster_that_is_not_there_is_said_in_one_sentence() -> None:
    for arguments in (["status", "--on", "http://127.0.0.1:1"], ["train", "digits.tiny", "--on", "http://127.0.0.1:1"]):
        program = AWAY.format(arguments=arguments)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 1, done
        assert (
            done.stderr.strip()
            .splitlines()[-1]
            .startswith("tokendial: the cluster at http://127.0.0.1:1 does not answer: ")
        )


WITHOUT = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "ray", "mlflow"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def test_work_that_the_base_install_cannot_do_says_what_to_install_or_where_to_send_it(tmp_path: Path) -> None:
    """A finder that says what Python itself says of a package that is not there."""
    environment = {**os.environ, "TOKENDIAL_HOME": str(tmp_path / "runs")}
    for arguments in (["train", "digits.tiny"], ["train", "digits.tiny", "--dry-run"]):
        program = WITHOUT + AWAY.format(arguments=arguments)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.returncode == 2, done.stderr
        assert done.stderr.strip().splitlines()[-1] == (
            "tokendial: this needs the package 'torch', which the base install lacks; pip install "
            "'tokendial[train,search,serve]' here, or give --on URL of a cluster that has it"
        )


# What the base install lacks of MLflow's packages, having `mlflow-skinny`: not there, rather than broken.
BASE = """
from importlib.machinery import PathFinder
absent, found = {"sqlalchemy", "alembic", "pandas", "sklearn", "scipy", "flask", "ray", "torch"}, PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in absent else found(name, path, target)
PathFinder.find_spec = find_spec
"""


def test_the_base_install_asks_the_tracking_server_for_logs(tmp_path: Path) -> None:
    away = {"TOKENDIAL_HOME": str(tmp_path / "runs"), "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    program = BASE + AWAY.format(arguments=["logs", "nobody"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **away})
    assert done.returncode == 2, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("tokendial: run 'nobody' has no logs: run 'nobody' is not under")
    assert "; tracking server http://127.0.0.1:1 is not usable (" in said

"""Every test runs with telemetry off, one OpenMP thread, its own runs folder, and no Ray authentication."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokendial import environment

os.environ["RAY_AUTH_MODE"] = "disabled"
# On every system this keeps a local cluster's servers on 127.0.0.1; Ray reads it when it is imported.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["TOKENDIAL_HOME"] = tempfile.mkdtemp(prefix="tokendial-tests-")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
atexit.register(shutil.rmtree, os.environ["TOKENDIAL_HOME"], ignore_errors=True)
environment.apply()
# A shell starts what it puts in the background with SIGINT ignored, and the commands that tests start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder of the test's own."""
    monkeypatch.setenv("TOKENDIAL_HOME", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One local Ray cluster of two CPUs for the whole session, started by the first test that asks for it."""
    import ray
    from tokendial.serve.application import CLUSTER_ENVIRONMENT

    os.environ.update(CLUSTER_ENVIRONMENT)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 1024 * 1024,
        runtime_env={"env_vars": environment.worker_environment()},
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def _gloo_group() -> Iterator[None]:
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.fixture
def worker_process(_gloo_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as the only training worker: a gloo group of one, and what a launcher tells DeepSpeed."""
    monkeypatch.setenv("LOCAL_RANK", "0")


@pytest.fixture(scope="module")
def backend() -> Any:
    """A backend that answers by a script, for the module's endpoint."""
    from endpoint_lab import ScriptedBackend

    return ScriptedBackend()


@pytest.fixture(scope="module")
def url(backend: Any) -> Iterator[str]:
    """Address of a running endpoint over the module's scripted backend."""
    from endpoint_lab import running
    from tokendial.serve.ingress import Options, create_app

    with running(create_app(backend, Options())) as address:
        yield address

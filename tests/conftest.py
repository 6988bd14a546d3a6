"""Every test runs with telemetry off, one OpenMP thread, its own runs folder, and no Ray authentication."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that share the session's Ray cluster: `make test` runs them beside all others."""
    for item in items:
        if isinstance(item, pytest.Function) and "ray_cluster" in item.fixturenames:
            item.add_marker("ray_cluster")


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
    # Without an address Ray would join a cluster that somebody has started on this machine.
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 1024 * 1024,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Any:
    """One finished run for all tests that need no more than that; a `run_lab.Place`."""
    from run_lab import trained_place

    return trained_place(tmp_path_factory.mktemp("place") / "runs", ray_cluster)


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The `train_lab.Lab` of a run that nothing happens to, by its overrides, each trained once."""
    from train_lab import Lab, configured

    trained: dict[str, Lab] = {}

    def run(*overrides: str) -> Lab:
        config = configured(*overrides)
        key = config.model_dump_json()
        if key not in trained:
            trained[key] = Lab(tmp_path_factory.mktemp("control") / "run", config).work()
        return trained[key]

    return run


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

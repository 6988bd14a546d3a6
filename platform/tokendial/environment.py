"""The process environment tokendial runs in: telemetry off, one OpenMP thread, a private build folder for DeepSpeed.

`apply()` sets defaults and is called before ray, torch or deepspeed are imported; a variable that is already set wins.
Run `python -m tokendial.environment warm` to build DeepSpeed's CPU operator once, under a time limit.
"""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

__all__ = ["apply", "build_folder", "has_gpu", "protect_token", "stale_locks", "warm", "worker_environment"]

TELEMETRY_OFF: Mapping[str, str] = {
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}

# The same on every machine, so these also travel to remote workers.
EVERYWHERE: Mapping[str, str] = {
    **TELEMETRY_OFF,
    "OMP_NUM_THREADS": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # How often Ray Train looks whether its workers are done or lost; its default is 2.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "TOKENIZERS_PARALLELISM": "false",
}


def apply(use_gpu: bool = True) -> None:
    """Set this process's defaults; training workers call it too, because GPUs and folders differ between machines.

    Without `use_gpu` the process sees no GPU: Ray hides none from a worker that asked for none, and DeepSpeed takes it.
    """
    if not use_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name, value in EVERYWHERE.items():
        os.environ.setdefault(name, value)
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not os.environ.get("RAY_ADDRESS"):
        # On every system this keeps a cluster that Ray starts here on 127.0.0.1; Ray reads it when it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # A machine of one's own is not drained, and the actor that would watch for it costs each run a process.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if not sys.stderr.isatty():
        # Libraries draw their bars into files too; transformers goes by the hub's variable.
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(build_folder()))
    scripts = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    if scripts not in path.split(os.pathsep):
        # DeepSpeed calls `ninja` by name, and a virtual environment need not be activated.
        os.environ["PATH"] = os.pathsep.join((scripts, path)) if path else scripts


def worker_environment() -> dict[str, str]:
    """`env_vars` for a Ray runtime environment: this process's values of what holds on every machine."""
    return {name: os.environ.get(name, value) for name, value in EVERYWHERE.items()}


def cluster_address() -> str:
    """The Ray cluster that RAY_ADDRESS names, or one of this process's own.

    Without an address Ray would join whatever cluster was started last on this machine.
    """
    return os.environ.get("RAY_ADDRESS") or "local"


def protect_token() -> None:
    """Ray leaves its authentication token readable by everyone; whoever reads it may run code on the cluster."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)


def has_gpu() -> bool:
    """Whether this process may use an NVIDIA GPU, judged without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def build_folder() -> Path:
    """Where torch builds extensions: one folder per environment and torch release, none rebuilds another's."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.blake2b(f"{sys.prefix} {torch_version()}".encode(), digest_size=4).hexdigest()
    return cache / "tokendial" / "torch_extensions" / key


def torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "none"


def stale_locks(folder: Path) -> list[Path]:
    """Build locks that no process of this machine holds open; torch would wait on them for ever, silently."""
    locks = sorted(folder.glob("*/lock"))
    held = set(_open_files()) if locks else set()
    return [lock for lock in locks if str(lock.resolve()) not in held]


def _open_files() -> Iterator[str]:
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            yield os.readlink(link)
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue


def warm(timeout_s: float) -> float:
    """Build DeepSpeed's CPU operator where it is missing and return the seconds it took.

    Raises TimeoutError past `timeout_s` and RuntimeError where the build fails; either way no lock is left behind.
    """
    apply()
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    for lock in stale_locks(folder):
        print(f"removing {lock}: left by a build that was killed", flush=True)
        lock.unlink(missing_ok=True)
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        build = subprocess.Popen(
            [sys.executable, "-m", "tokendial.environment", "build"],
            # As workers that train on the CPU have it, which they may do beside a GPU.
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = build.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"DeepSpeed's CPU operator was not built in {timeout_s:g} s in {folder}") from None
        finally:
            _end(build)
            for lock in stale_locks(folder):
                lock.unlink(missing_ok=True)
        if code:
            log.seek(0)
            raise RuntimeError(f"DeepSpeed's CPU operator did not build in {folder}:\n{log.read()[-4000:]}")
    return time.monotonic() - start


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the build and the compilers it started, and reap it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def build() -> None:
    """Load DeepSpeed's shared-memory operator the way a training worker does: in a gloo group, here of one."""
    import deepspeed
    import torch.distributed

    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        deepspeed.init_distributed(dist_backend="gloo", dist_init_required=False)
        torch.distributed.destroy_process_group()


def main(arguments: list[str]) -> int:
    match arguments:
        case ["build"]:
            build()
        case ["warm", *rest] if len(rest) <= 1:
            if sys.platform != "linux":
                print("DeepSpeed's CPU operator is not needed here")
                return 0
            try:
                seconds = warm(float(rest[0]) if rest else 600.0)
            except (TimeoutError, RuntimeError) as error:
                print(error, file=sys.stderr)
                return 1
            print(f"DeepSpeed's CPU operator is ready in {os.environ['TORCH_EXTENSIONS_DIR']} ({seconds:.0f} s)")
        case _:
            print("usage: python -m tokendial.environment warm [SECONDS]", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

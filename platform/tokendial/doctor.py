"""What this machine lacks for training, in one sentence each, with what to do about it. Run as `tokendial doctor`."""

import http.client
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from tokendial import environment, machine
from tokendial.runs import home
from tokendial.tracking import redact

GIB = 1 << 30
STANDARD_PORTS = {5000: "MLflow", 6379: "Ray", 8000: "Ray Serve", 8265: "Ray dashboard", 10001: "Ray client"}
WIDE_ADDRESSES = ("00000000", "0" * 32)

Status = Literal["ok", "warn", "fail"]

__all__ = ["Check", "checks"]


class Check(NamedTuple):
    """One finding; `advice` is empty where nothing needs doing."""

    name: str
    status: Status
    finding: str
    advice: str = ""


def checks() -> list[Check]:
    """Every finding on this machine, most basic first; imports neither torch nor ray and changes nothing."""
    return [*_software(), *_machine(), *_places(), *_services()]


def _software() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    right = sys.version_info[:2] == (3, 11)
    yield Check("python", "ok" if right else "fail", f"Python {version}", "" if right else "use Python 3.11")
    if environment.torch_version() == "none":
        yield Check("install", "ok", "client install, without torch", "pip install 'tokendial[train]' to train here")
        return
    yield from map(_package, pinned())
    if sys.platform == "linux":
        yield from _build_tools()


def pinned() -> list[tuple[str, str]]:
    """(name, release) of every package that training on this system relies on in exactly one release."""
    exact = re.compile(r"^([\w.-]+)(?:\[[^\]]*\])?==([^;\s]+);(.*extra == 'train'.*)")
    found = filter(None, map(exact.match, metadata.requires("tokendial") or []))
    here = f"sys_platform == '{sys.platform}'"
    return sorted((pin[1], pin[2]) for pin in found if "sys_platform" not in pin[3] or here in pin[3])


def _package(pin: tuple[str, str]) -> Check:
    name, wanted = pin
    advice = f"pip install {name}=={wanted}"
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "fail", f"{name} is not installed, {wanted} is needed", advice)
    if found.partition("+")[0] != wanted:
        return Check(name, "fail", f"{name} is {found}, {wanted} is needed", advice)
    return Check(name, "ok", f"{name} {found}")


def _build_tools() -> Iterator[Check]:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if header.exists():
        yield Check("headers", "ok", f"Python.h is in {header.parent}")
    else:
        yield Check("headers", "fail", f"{header} is missing; DeepSpeed cannot build", "install python3.11-dev")
    for tool, package in (("g++", "g++"), ("ninja", "ninja")):
        path = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
        missing = f"{tool} is not on PATH; DeepSpeed cannot build"
        yield Check(tool, "ok", path) if path else Check(tool, "fail", missing, f"install {package}")
    yield _deepspeed_build(Path(os.environ.get("TORCH_EXTENSIONS_DIR") or environment.build_folder()))


def _deepspeed_build(folder: Path) -> Check:
    warm = "python -m tokendial.environment warm"
    stale = environment.stale_locks(folder)
    if stale:
        finding = f"{stale[0]} was left by a killed build; training would wait on it for ever"
        return Check("deepspeed build", "fail", finding, f"rm {stale[0]}, then {warm}")
    if not list(folder.glob("deepspeed_shm_comm/*.so")):
        return Check(
            "deepspeed build", "warn", "the CPU operator is not built; the first run on CPUs waits a minute", warm
        )
    return Check("deepspeed build", "ok", f"ready in {folder}")


def _machine() -> Iterator[Check]:
    cpus = machine.cpus()
    few = cpus < 2
    advice = "train with workers=1" if few else ""
    yield Check("cpu", "warn" if few else "ok", f"{cpus} CPU{'s' * (cpus > 1)} for this process", advice)
    yield _gpu()
    if sys.platform != "linux":
        return
    yield _size("memory", available_memory(), 2 * GIB, 6 * GIB, "close other programs, or use a smaller micro_batch")
    advice = "enlarge /dev/shm (docker run --shm-size=2g)"
    if Path("/dev/shm").is_dir():
        yield _size("shared memory", shutil.disk_usage("/dev/shm").free, GIB // 16, GIB, advice)
    else:
        yield Check("shared memory", "warn", "/dev/shm is missing; Ray falls back to slow files", advice)


def _gpu() -> Check:
    if not environment.has_gpu():
        return Check("gpu", "ok", "no NVIDIA GPU visible; training runs in fp32 on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return Check("gpu", "warn", f"a GPU device exists but nvidia-smi failed: {error}", "repair the NVIDIA driver")
    return Check("gpu", "ok", "; ".join(done.stdout.strip().splitlines()))


def available_memory() -> int:
    """Bytes this process could still allocate: the machine's, or what its control group leaves."""
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    assert found, "Linux reports MemAvailable"
    whole = int(found[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        return min(whole, int(most) - int(used.read_text()))
    return whole


def _size(name: str, value: int, least: int, enough: int, advice: str) -> Check:
    finding = f"{value / GIB:.1f} GiB free"
    if value >= enough:
        return Check(name, "ok", finding)
    return Check(name, "fail" if value < least else "warn", f"{finding}; {enough / GIB:g} GiB is comfortable", advice)


def _places() -> Iterator[Check]:
    folder = home()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    advice = "set TOKENDIAL_HOME to a folder you may write"
    try:
        with tempfile.TemporaryFile(dir=existing):
            yield Check("runs folder", "ok", f"{folder} can be written")
    except OSError as error:
        yield Check("runs folder", "fail", f"{folder} cannot be written: {error.strerror}", advice)
    free = shutil.disk_usage(existing).free
    yield _size("disk", free, GIB, 5 * GIB, "free some space, or set TOKENDIAL_HOME to a larger disk")


def _services() -> Iterator[Check]:
    yield _ports()
    if sys.platform == "linux":
        yield _listening()
    yield from _authentication()
    yield _telemetry()
    yield _tracking()


def _ports() -> Check:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        return Check("ports", "fail", f"no port can be opened on 127.0.0.1: {error.strerror}", "allow loopback sockets")
    taken = [f"{port} ({name})" for port, name in STANDARD_PORTS.items() if not _is_free(port)]
    others = f"; taken, so others are chosen: {', '.join(taken)}" if taken else ""
    return Check("ports", "ok", f"loopback ports are free{others}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _listening() -> Check:
    wide = sorted(wide_listeners() & STANDARD_PORTS.keys())
    if not wide:
        return Check("listening", "ok", "none of the standard ports is open to other machines")
    named = ", ".join(f"{port} ({STANDARD_PORTS[port]})" for port in wide)
    advice = "start it on 127.0.0.1, or behind a firewall with RAY_AUTH_MODE=token"
    return Check("listening", "warn", f"open on every interface: {named}", advice)


def wide_listeners() -> set[int]:
    """TCP ports that some process listens on at every interface."""
    ports = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            local, state = line.split()[1], line.split()[3]
            address, port = local.rsplit(":", 1)
            if state == "0A" and address in WIDE_ADDRESSES:
                ports.add(int(port, 16))
    return ports


def _authentication() -> Iterator[Check]:
    mode = os.environ.get("RAY_AUTH_MODE", "unset")
    if mode == "disabled":
        advice = "set RAY_AUTH_MODE=token unless nobody else can reach this machine"
        yield Check("ray auth", "warn", "RAY_AUTH_MODE is disabled: who reaches the cluster can run code on it", advice)
    else:
        yield Check("ray auth", "ok", f"RAY_AUTH_MODE is {mode}; a local cluster asks for a token")
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if token.exists():
        mode_bits = stat.S_IMODE(token.stat().st_mode)
        private = not mode_bits & 0o077
        advice = "" if private else f"chmod 600 {token}"
        yield Check("ray token", "ok" if private else "warn", f"{token} has mode {mode_bits:04o}", advice)


def _telemetry() -> Check:
    on = [name for name, value in environment.TELEMETRY_OFF.items() if os.environ.get(name) != value]
    if on:
        advice = "export " + " ".join(f"{name}={environment.TELEMETRY_OFF[name]}" for name in on)
        return Check("telemetry", "warn", f"may be sent by dependencies: {', '.join(on)} not set to off", advice)
    return Check("telemetry", "ok", "off for every dependency")


def _tracking() -> Check:
    uri = redact(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if not uri.startswith(("http://", "https://")):
        return Check("tracking", "ok", f"runs are tracked in {uri or 'sqlite under the runs folder'}")
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=3) as answer:
            return Check("tracking", "ok", f"{uri} answers {answer.status}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        advice = "start the server or unset MLFLOW_TRACKING_URI; until then records are kept and replayed"
        return Check("tracking", "warn", f"{uri} does not answer: {error}", advice)

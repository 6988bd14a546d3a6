"""The doctor names what is wrong on this machine, says what to do, changes nothing and imports nothing heavy."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from tokendial import doctor, environment

NAMES = {"python", "cpu", "gpu", "runs folder", "disk", "ports", "ray auth", "telemetry", "tracking"}


def find(name: str) -> doctor.Check:
    return next(check for check in doctor.checks() if check.name == name)


def test_every_finding_is_a_sentence_with_advice_where_something_is_wrong() -> None:
    found = doctor.checks()
    assert {check.name for check in found} >= NAMES
    assert len({check.name for check in found}) == len(found)
    for check in found:
        assert check.finding
        assert "\n" not in check.finding + check.advice
        assert check.status == "ok" or check.advice, check


def test_pinned_releases_are_those_of_the_constraints() -> None:
    pins = dict(doctor.pinned())
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert {f"{name}=={version}" for name, version in pins.items()} <= set(constraints)


@pytest.mark.parametrize(("system", "more"), [("linux", {"deepspeed", "triton"}), ("darwin", set())])
def test_pinned_releases_are_those_of_training_on_this_system(
    system: str, more: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert dict(doctor.pinned()).keys() == {"mlflow", "ray", "torch", "transformers"} | more


def test_another_release_and_a_missing_package_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "pinned", lambda: [("pydantic", "0.0.1"), ("tokendial-absent", "1.0")])
    assert find("pydantic")[1:] == (
        "fail",
        f"pydantic is {metadata.version('pydantic')}, 0.0.1 is needed",
        "pip install pydantic==0.0.1",
    )
    assert find("tokendial-absent").status == "fail"


def test_a_stale_lock_is_named_and_a_held_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    with lock.open("w"):
        assert environment.stale_locks(tmp_path) == []
        assert find("deepspeed build").status != "fail"
    assert environment.stale_locks(tmp_path) == [lock]
    check = find("deepspeed build")
    assert check.status == "fail"
    assert str(lock) in check.finding
    assert lock.exists()


def test_warm_removes_a_stale_lock_and_ends_a_build_past_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    with pytest.raises(TimeoutError, match=r"was not built in 0\.05 s"):
        environment.warm(0.05)
    assert f"removing {lock}" in capsys.readouterr().out
    assert not lock.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is for Linux")
def test_the_cpu_operator_is_built_beside_a_gpu_too_where_too_few_gpus_leave_a_run_to_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert find("deepspeed build").status == "warn"
    built: list[dict[str, str]] = []

    class Build:
        def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
            built.append(env)

        def wait(self, timeout_s: float) -> int:
            return 0

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(environment.subprocess, "Popen", Build)
    assert environment.main(["warm"]) == 0
    assert (built[0]["CUDA_VISIBLE_DEVICES"], built[0]["DS_ACCELERATOR"]) == ("", "cpu")
    assert f"is ready in {tmp_path}" in capsys.readouterr().out


def test_an_unwritable_runs_folder_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENDIAL_HOME", str(Path("/proc/tokendial") if sys.platform == "linux" else tmp_path))
    assert find("runs folder").status == "fail"


def test_telemetry_that_is_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("telemetry").status == "ok"
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    check = find("telemetry")
    assert check.status == "warn"
    assert check.advice == "export RAY_USAGE_STATS_ENABLED=0"


def test_a_token_that_others_can_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "auth_token"
    token.write_text("secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    token.chmod(0o644)
    assert find("ray token")[1:] == ("warn", f"{token} has mode 0644", f"chmod 600 {token}")
    token.chmod(0o600)
    assert find("ray token").status == "ok"
    assert "secret" not in str(doctor.checks())


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Health) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_tracking_server_that_answers_is_ok_and_its_password_stays_hidden(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{server}")
    assert find("tracking") == doctor.Check("tracking", "ok", f"http://{server} answers 200")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    check = find("tracking")
    assert check.status == "warn"
    assert "secret" not in check.finding


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net")
def test_a_port_open_on_every_interface_is_seen() -> None:
    with socket.socket() as private, socket.socket() as wide:
        private.bind(("127.0.0.1", 0))
        wide.bind(("0.0.0.0", 0))
        private.listen()
        wide.listen()
        ports = doctor.wide_listeners()
        assert wide.getsockname()[1] in ports
        assert private.getsockname()[1] not in ports


def test_a_process_that_was_given_no_gpu_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    environment.apply(use_gpu=False)
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["DS_ACCELERATOR"]) == ("", "cpu")


def test_the_environment_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for name in ("DO_NOT_TRACK", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    environment.apply()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["DO_NOT_TRACK"] == "true"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1", "nobody looks at bars in a file"
    assert environment.worker_environment()["OMP_NUM_THREADS"] == "3"
    assert "TORCH_EXTENSIONS_DIR" not in environment.worker_environment()


def test_ninja_is_found_without_an_activated_environment() -> None:
    program = "import shutil; from tokendial import environment; environment.apply(); print(shutil.which('ninja'))"
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if p != str(Path(sys.executable).parent))
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).parent == Path(sys.executable).parent

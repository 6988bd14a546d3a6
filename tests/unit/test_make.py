"""`make test`: two halves of the suite side by side, what each says, one verdict, and an end to both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In Python's place: says which half it was started for, meets the other one, and ends as it is told to.
HALF = """
import os, signal, sys, time
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)
half, other = ("others", "sharing") if "not ray_cluster" in sys.argv[-1] else ("sharing", "others")
code, seconds = os.environ[half].split()
print(half, "begins with", *sys.argv[1:], flush=True)
folder = Path(sys.argv[0]).parent
(folder / f".{half}").write_text(str(os.getpid()))
(folder / f".{half}").rename(folder / half)
deadline = time.monotonic() + 30
try:
    while not (folder / other).exists():
        assert time.monotonic() < deadline, "alone"
        time.sleep(0.01)
    time.sleep(float(seconds))
except KeyboardInterrupt:
    code = 2
print(half, "ends", flush=True)
sys.exit(int(code))
"""


@pytest.fixture
def make_test(tmp_path: Path) -> Callable[[str, str], subprocess.Popen[str]]:
    """`make test` on two halves that are given as exit status and seconds."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{HALF}")
    python.chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def start(others: str, sharing: str) -> subprocess.Popen[str]:
        words = ["make", "--old-file=.venv/.ready", f"BIN={tmp_path}", "test"]
        environment = {**own, "others": others, "sharing": sharing}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    return start


def test_both_halves_are_run_at_once_and_shown_one_after_the_other(
    make_test: Callable[[str, str], subprocess.Popen[str]],
) -> None:
    out, err = make_test("0 0.5", "0 0").communicate(timeout=60)
    assert err == ""
    heading = "The tests that share one Ray cluster, once they have ended:"
    assert out.splitlines() == [
        "others begins with -m pytest -m not ray_cluster and not slow and not gpu",
        "others ends",
        "",
        heading,
        "sharing begins with -m pytest -m ray_cluster and not slow and not gpu",
        "sharing ends",
    ]


@pytest.mark.parametrize(
    ("others", "sharing", "good"),
    [
        (0, 0, True), (1, 0, False), (0, 1, False), (1, 1, False), (2, 5, False), (5, 0, True), (0, 5, True),
        (5, 5, False),
    ],
)  # fmt: skip
def test_it_fails_where_either_does_and_where_no_test_was_chosen(
    others: int, sharing: int, good: bool, make_test: Callable[[str, str], subprocess.Popen[str]]
) -> None:
    process = make_test(f"{others} 0", f"{sharing} 0")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode == 0) == good
    assert "others ends" in out
    assert "sharing ends" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_told_to_stop_both_end_and_say_what_they_have_to(
    number: signal.Signals, tmp_path: Path, make_test: Callable[[str, str], subprocess.Popen[str]]
) -> None:
    process = make_test("0 60", "0 60")
    deadline = time.monotonic() + 30
    while not all((tmp_path / half).exists() for half in ("others", "sharing")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if number == signal.SIGINT:
        # As a terminal does it.
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    for half in ("others", "sharing"):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / half).read_text()), 0)
        assert (f"{half} ends" in out) == (number == signal.SIGINT)
        assert f"{half} begins" in out

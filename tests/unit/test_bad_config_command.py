"""The real command on bad input: exit 2, one sentence, under two seconds, nothing written, Ray not imported."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

BAD = {
    "unknown key": (["train", "digits", "bad=1"], "unknown key 'bad'"),
    "negative count": (["train", "digits", "schedule.counts=[-4,16,144]"], "schedule.counts"),
    "law the projector cannot run": (["train", "digits", "schedule=mqt"], "not admissible"),
    "accumulation not whole": (["train", "digits", "micro_batch=5"], "global_batch 32"),
    "more workers than CPUs": (["train", "digits", "workers=4096", "global_batch=4096"], "4096"),
    "missing data": (["train", "digits", "data.path=nowhere"], "data.path 'nowhere' does not exist"),
    "unknown experiment": (["train", "digitz"], "'digitz' is unknown"),
    "missing file": (["train", "--config", "absent.json"], "No such file"),
    "dry run of a bad law": (["train", "digits", "--dry-run", "schedule.weights=[0,0,0]"], "sums to zero"),
    "dry run from a run that is not there": (
        ["train", "digits", "--dry-run", "--from", "absent"],
        "run 'absent' is not",
    ),
    "dry run of a bad name": (["train", "digits", "--dry-run", "--name", "../up"], "run name '../up'"),
    "unknown run": (["report", "no-such-run"], "no-such-run"),
    "experiment beside --list": (
        ["train", "--list", "digits", "seed=7", "--on", "http://127.0.0.1:1"],
        "--list shows all there is and goes with --json only; leave out digits, seed=7, --on",
    ),
    "bad counts of eval": (["eval", "last", "--counts", "4,x"], "--counts '4,x'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_stops_before_anything_starts(name: str, tmp_path: Path) -> None:
    arguments, words = BAD[name]
    environment = {key: value for key, value in os.environ.items() if key != "TOKENDIAL_HOME"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tokendial", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2, said
    assert len(said) == 1, said
    assert words in said[0]
    assert re.fullmatch(r"tokendial: .{10,400}", said[0])
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
    assert "tokendial.cli" in imported
    assert not imported & {"ray", "torch", "transformers", "mlflow", "deepspeed"}
    # Processor seconds, which other work on the machine does not change.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 2

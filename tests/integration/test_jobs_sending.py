"""From a laptop to a real cluster that asks for a token: sent, followed, continued, stopped; no secret travels."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_lab import ROOT, TINY, Place, environment, local_cluster
from run_lab import finished, until
from tokendial.jobs import Cluster

CANARY = "canary-4f1d2c9b7a"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with local_cluster() as place:
        yield place


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    (tmp_path / "laptop").mkdir()
    return tmp_path / "laptop"


@pytest.mark.slow
def test_plain_ray_job_submit_runs_the_working_tree_and_not_what_is_installed(place: Place, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in ("platform", "workloads", "kernels", "clusters"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    presets = tree / "platform" / "tokendial" / "schedule" / "presets.py"
    edited = presets.read_text().replace("(2, 3, 5)", "(7, 1, 1)")
    assert edited != presets.read_text(), "the schedule that this test edits is written another way"
    presets.write_text(edited)
    pyproject = tree / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"digits.tiny" =', '"digits.mine" ='))
    said = subprocess.run(
        [
            Path(sys.executable).parent / "ray", "job", "submit", "--address", place.url,
            "--runtime-env", "clusters/runtime-env.yaml", "--working-dir", ".", "--",
            "python", "-m", "tokendial", "train", "digits.mine", *TINY, "schedule=tokenflex", "--name", "edited",
        ],
        env=place.client(tmp_path, RAY_AUTH_MODE="token"), cwd=tree, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    config = json.loads((place.home / "edited" / "config.json").read_text())
    assert config["schedule"]["weights"] == [7, 1, 1]


def test_a_run_is_sent_followed_and_recorded_as_what_it_is_here(place: Place, laptop: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=laptop, check=True)
    (laptop / "mine.py").write_text("rate = 1\n")
    subprocess.run(["git", "add", "."], cwd=laptop, check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *author, "commit", "-q", "-m", "one"], cwd=laptop, check=True)
    (laptop / "mine.py").write_text("rate = 2\n")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=laptop, capture_output=True, text=True).stdout.strip()

    sent = ("train", "digits.tiny", *TINY, "--on", place.url, "--name", "sent")
    said = place.say(laptop, *sent, "--json", LOGNAME="ada", AWS_SECRET_ACCESS_KEY=CANARY, MY_TOKEN=CANARY)
    assert said.code == 0, said.err
    assert said.document["name"] == "sent"
    assert said.document["curve"].keys() == {"1", "4"}
    assert "starting workers" in said.err
    record = json.loads((place.home / "sent" / "run.json").read_text())
    assert (record["user"], record["commit"], record["status"]) == ("ada", commit, "FINISHED")
    assert "+rate = 2" in (place.home / "sent" / "uncommitted.diff").read_text()
    assert not (laptop / "runs" / "sent").exists()

    again = place.say(laptop, *sent)
    assert again.code == 0, again.err
    assert "accuracy on test" in again.out
    _no_canary(place)
    scored = place.say(laptop, "eval", "sent", "--counts", "1,9", "--on", place.url, "--json")
    assert scored.code == 0, scored.err
    assert scored.document["curve"].keys() == {"1", "9"}


def _no_canary(place: Place) -> None:
    """A secret of the laptop is in no job, runtime environment, command line, log, run or MLflow record."""
    with environment(place.client(place.home)):
        cluster = Cluster(place.url)
        jobs = cluster.jobs()
        told = json.dumps(jobs) + "".join(map(cluster.log, jobs))
    assert CANARY not in told
    own = place.token.read_text().strip()
    assert own not in told
    for path in place.home.parent.rglob("*"):
        if path.is_file() and path != place.token:
            content = path.read_bytes()
            assert CANARY.encode() not in content, path
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        assert CANARY.encode() not in line, path


@pytest.mark.slow
def test_logs_and_status_answer_by_name_and_stay_when_the_folder_does(place: Place, laptop: Path) -> None:
    said = place.say(laptop, "train", "digits.tiny", *TINY, "--on", place.url, "--name", "told")
    assert said.code == 0, said.err
    assert "told: sent; follow it again with `tokendial logs told --follow`" in said.out
    standing = place.say(laptop, "status", "told", "--json")
    assert standing.code == 0, standing.err
    assert [(row["run"], row["place"], row["status"]) for row in standing.document] == [("told", place.url, "FINISHED")]
    last = place.say(laptop, "status", "last", "--on", place.url, "--json")
    assert last.code == 0, last.err
    # Ray itself was asked for the end of the driver's log.
    assert [(row["run"], row["step"] > 0) for row in last.document] == [("told", True)]
    assert "starting workers" in place.say(laptop, "logs", "last").out
    assert "starting workers" in place.say(laptop, "logs", "told").out
    on_the_cluster = place.say(laptop, "logs", "told", "--rank", "0", TOKENDIAL_HOME=str(place.home))
    assert "rank 0 of 1" in on_the_cluster.out, on_the_cluster.err
    assert (place.home / "told" / "logs" / "driver.log").read_text()
    followed = place.say(laptop, "logs", "told", "--follow")
    assert followed.code == 0, followed.err
    assert "starting workers" in followed.out
    missing = place.say(laptop, "logs", "nobody", "--on", place.url)
    assert missing.code == 2
    assert "run 'nobody' has no logs" in missing.err


@pytest.mark.slow
def test_a_stopped_run_ends_as_killed_and_the_same_command_continues_it(place: Place, laptop: Path) -> None:
    long = ("train", "digits.tiny", *TINY[1:], "budget.steps=2000", "--on", place.url, "--name", "long")
    client = place.start(laptop, *long)
    until("a checkpoint", lambda: any((place.home / "long" / "checkpoints").glob("*/manifest.json")), client)
    client.send_signal(signal.SIGINT)
    left = finished(client)
    assert left.code == 130, left.err
    standing = place.say(laptop, "status", "long", "--json").document[-1]
    assert standing["status"] == "RUNNING"
    attached = place.start(laptop, *long)
    assert attached.stdout is not None
    assert "at work already" in next(line for line in attached.stdout if line.startswith("long: "))
    stopped = place.say(laptop, "stop", "long", "--json")
    assert stopped.document == {"run": "long", "place": place.url}, stopped.err
    ended = finished(attached)
    assert ended.code == 1
    assert "the job was stopped; the same command continues the run" in ended.err
    assert json.loads((place.home / "long" / "run.json").read_text())["status"] == "KILLED"
    with environment(place.client(laptop)):
        jobs = [job for job in Cluster(place.url).jobs() if job["metadata"].get("tokendial_run") == "long"]
    assert len(jobs) == 1, "the second command followed the first one's job"
    refused = place.say(laptop, "stop", "long")
    assert refused.code == 2
    assert "is not at work" in refused.err


@pytest.mark.slow
def test_bad_input_that_only_the_cluster_sees_is_bad_input_here(place: Place, laptop: Path) -> None:
    said = place.say(laptop, "train", "digits.tiny", *TINY, "--from", "nobody", "--on", place.url)
    assert said.code == 2, said.err
    assert said.err.strip().splitlines()[-1].startswith("tokendial: run 'nobody' is not under")


@pytest.mark.slow
def test_own_experiments_travel_with_the_modules_beside_them(place: Place, laptop: Path) -> None:
    (laptop / "rates.py").write_text("SEED = 11\n")
    (laptop / "mine.py").write_text(
        "from rates import SEED\nfrom tokendial_workloads.digits.experiments import tiny\n\n\n"
        "def short():\n    return tiny().model_copy(update={'seed': SEED})\n"
    )
    said = place.say(laptop, "train", "mine:short", *TINY, "--on", place.url, "--name", "own", "--json")
    assert said.code == 0, said.err
    assert json.loads((place.home / "own" / "config.json").read_text())["seed"] == 11


def test_a_wrong_token_is_refused_in_one_sentence(place: Place, laptop: Path) -> None:
    wrong = laptop / "token"
    wrong.write_text("0" * 64)
    said = place.say(laptop, "status", "--on", place.url, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert said.code == 2, said.err
    assert said.err.startswith(f"tokendial: the cluster at {place.url} refused the token")
    assert place.token.stat().st_mode & 0o777 == 0o600
    assert os.environ.get("RAY_AUTH_TOKEN") is None

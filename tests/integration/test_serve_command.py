"""`tokendial serve` as it is typed: here until it is interrupted, and on a cluster until it is stopped."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from jobs_lab import local_cluster
from run_lab import command, finished, say, until
from serve_lab import SMALL, asked, model_folder
from served_model import picture
from tokendial import runs
from tokendial.identity import Identity
from tokendial.resolve import resolve

pytestmark = pytest.mark.slow


def test_a_model_is_served_by_the_command_until_it_is_interrupted(
    home: Path, tmp_path: Path, ray_cluster: str
) -> None:
    serve = ("serve", *SMALL, "--model", str(model_folder(tmp_path)), "--json")

    def address() -> str:
        process = command(*serve, home=home, address=ray_cluster)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            about = json.loads(line)
            assert about["model"] == "digits"
            assert asked(about["url"], picture(0), "digits@16")["usage"]["visual_tokens"] == 16
        finally:
            process.send_signal(signal.SIGINT)
            ended = finished(process)
        assert ended.code == 0, ended.err
        return about["url"]

    # The first one leaves the cluster's Serve behind, with its proxies.
    assert address() == address()
    refused = say(*serve, "port=1", home=home, address=ray_cluster)
    assert (refused.code, "leave port out" in refused.err) == (2, True), refused.err


def test_an_endpoint_is_sent_answers_and_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laptop = tmp_path / "laptop"
    laptop.mkdir()
    with local_cluster() as place:
        monkeypatch.setenv("TOKENDIAL_HOME", str(place.home))
        run = runs.create("made", resolve("digits.tiny", machine_cpus=None), Identity(user="ada"))
        shutil.copytree(model_folder(tmp_path), run.model)
        run.update(status="FINISHED")
        sent = place.say(laptop, "serve", *SMALL, "--model", "made", "--on", place.url, "--json")
        assert sent.code == 0, sent.err
        assert asked(sent.document["url"], picture(0), "digits@16")["usage"]["visual_tokens"] == 16

        def status() -> tuple[str, str]:
            (row,) = place.say(laptop, "status", "last", "--json").document
            return row["run"], row["status"]

        assert status() == ("serve.made", "RUNNING")
        stopped = place.say(laptop, "stop", "last")
        assert stopped.code == 0, stopped.err
        until("the end of the endpoint's job", lambda: status() == ("serve.made", "KILLED"))

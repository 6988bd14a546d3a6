"""Engine replicas come with the visual tokens in flight and go with them, and no answer is lost on the way."""

import json
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from ray import serve
from serve_lab import SMALL, body, kept, model_folder, posted
from served_model import picture
from tokendial.failures import WorkFailed
from tokendial.serve.application import Endpoint
from tokendial.serve.options import serve_settings
from tokendial.serve.source import Source

pytestmark = pytest.mark.slow
SETTINGS = (
    "replicas.most=2", "replicas.target_share=0.1", "replicas.up_after_s=1", "replicas.down_after_s=2",
    "engine.governor=off",
)  # fmt: skip


def replicas(url: str) -> int:
    with urllib.request.urlopen(f"{url}/load") as answer:
        return len(json.loads(answer.read())["replicas"])


def within(seconds: float, url: str, wanted: int) -> float:
    """Seconds until there are so many replicas; fails where they do not come."""
    began = time.monotonic()
    while replicas(url) != wanted:
        assert time.monotonic() - began < seconds
        time.sleep(0.5)
    return time.monotonic() - began


def test_replicas_follow_the_tokens_wanted_in_flight(ray_cluster: str, tmp_path: Path) -> None:
    with kept(model_folder(tmp_path), *SETTINGS) as (_, url, _):
        assert replicas(url) == 1
        stop, seen = threading.Event(), []

        def ask(number: int) -> None:
            # Bent or not, these want the largest count; they are long, so some are always in flight.
            while not stop.is_set():
                document = body(picture(number), max_tokens=300, temperature=1.5, seed=number)
                seen.append(posted(url, document)[0])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            within(90, url, 2)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        within(90, url, 1)
        assert set(seen) == {200}
    serve.shutdown()


def test_one_failed_start_of_two_replicas_does_not_end_a_version(ray_cluster: str, tmp_path: Path) -> None:
    # Of a class in here, which Ray sends along: its workers cannot import this module.
    class Stumbling(Source):
        def fetch(self) -> Path:
            folder = super().fetch()
            try:
                (folder.parent / "asked").mkdir()
            except FileExistsError:
                return folder
            raise WorkFailed("the registry is away")

    folder = model_folder(tmp_path)
    endpoint = Endpoint(serve_settings([*SMALL, "replicas.least=2", "replicas.most=2"]), None, ours=False)
    endpoint.open("a test")
    try:
        running = endpoint.start(Stumbling("digits", "1", folder=str(folder)))
        assert (folder.parent / "asked").is_dir()
        states = serve.status().applications[running.application].deployments["engine"].replica_states
        assert states == {"RUNNING": 2}
    finally:
        endpoint.close()
        serve.shutdown()

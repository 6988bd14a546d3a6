"""How each request ended, and what each governor decides, is to be read from the endpoint's own page."""

import http.client
import json
import re
import time

import pytest
from endpoint_lab import COUNTS, ScriptedBackend, chat, get, post
from tokendial.serve.backend import Served
from tokendial.serve.exposition import Exposition


def counted(url: str, series: str, label: str) -> dict[str, float]:
    """A counter's values by one of its labels."""
    lines = re.findall(rf"^tokendial_serve_{series}_total\{{(.*)\}} (.*)$", get(url, "/metrics")[1], re.MULTILINE)
    return {re.findall(rf'{label}="(\w*)"', labels)[0]: float(value) for labels, value in lines}


def grown(url: str, before: dict[str, float], series: str, label: str) -> dict[str, float]:
    """What a counter has more than before, once it has more at all."""
    deadline = time.monotonic() + 10
    while True:
        now = counted(url, series, label)
        if more := {name: value - before.get(name, 0) for name, value in now.items() if value != before.get(name, 0)}:
            return more
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("text", "code"),
    [("one two", "200"), ("one lost two", "503"), ("one broken two", "500")],
    ids=["whole", "lost", "failed"],
)
def test_a_stream_counts_once_and_by_how_it_ended(url: str, text: str, code: str) -> None:
    before = counted(url, "requests", "code")
    assert post(url, chat(text=text, stream=True))[0] == 200
    assert grown(url, before, "requests", "code") == {code: 1}


@pytest.mark.parametrize("text", ["slow", "one slow"], ids=["before its first piece", "in its middle"])
def test_a_stream_that_its_client_leaves_counts_as_left(url: str, backend: ScriptedBackend, text: str) -> None:
    before = counted(url, "requests", "code")
    backend.asleep.clear()
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", "/v1/chat/completions", json.dumps(chat(text=text, stream=True)))
    assert backend.asleep.wait(10)
    connection.close()
    assert grown(url, before, "requests", "code") == {"499": 1}


@pytest.mark.parametrize("cause", ["busy", "target", "expired"])
def test_what_is_refused_for_load_counts_by_its_cause(url: str, cause: str) -> None:
    before = counted(url, "refusals", "cause")
    assert post(url, chat(text=cause))[0] == 429
    assert grown(url, before, "refusals", "cause") == {cause: 1}


def test_changes_of_version_and_retries_are_counted_from_none(url: str) -> None:
    assert counted(url, "model_changes", "outcome") == {"promoted": 0, "refused": 0}
    assert counted(url, "retries", "model") == {"scripted": 0}


def test_each_governors_decisions_are_gauges(url: str) -> None:
    text = get(url, "/metrics")[1]
    place = 'model="scripted",replica="a"'
    assert f"tokendial_serve_governor_level_steps{{{place}}} 1.0" in text
    assert f"tokendial_serve_governor_cap_tokens{{{place}}} 16.0" in text
    assert f"tokendial_serve_governor_lift_ratio{{{place}}} 0.25" in text
    assert f"tokendial_serve_demand_ratio{{{place}}} 0.5" in text
    assert f'tokendial_serve_governor_barred_tokens{{count="4",{place}}} 4.0' in text


def test_who_is_not_capped_is_held_to_the_largest_count_and_what_is_barred_no_longer_goes() -> None:
    exposition, served = Exposition(), ScriptedBackend().served()
    load = {"queued": 0, "running": 0, "wanted_tokens": 0, "demand_share": 0.0, "crowded": False}
    load |= {"agreement": {}, "latency_ms": {}, "start_s": {}}

    def text(level: int, cap: int | None, barred: tuple[int, ...], of: Served = served) -> str:
        decided = {"level": level, "cap": cap, "lift": 0.0, "barred": barred}
        return exposition.text(of, {"a": {**load, **decided}}).decode()

    assert "governor_barred_tokens{" in text(1, 16, (4,))
    free = text(0, None, ())
    assert "governor_barred_tokens{" not in free
    assert f'governor_cap_tokens{{model="scripted",replica="a"}} {COUNTS[-1]:.1f}' in free

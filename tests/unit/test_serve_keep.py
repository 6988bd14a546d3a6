"""A version that cannot prove itself is refused with the reason, and the one before it goes on serving."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokendial.experiments import ConfigError
from tokendial.failures import ClusterAway, WorkFailed
from tokendial.model_folder import Rung
from tokendial.results import ExampleAnswers
from tokendial.serve import keep
from tokendial.serve.backend import Served, Whole
from tokendial.serve.keep import CHANGES, Keeper
from tokendial.serve.options import serve_settings
from tokendial.serve.replica import Refusal
from tokendial.serve.request import Done, ServeRequest
from tokendial.serve.source import Followed, Source
from tokendial.serve.start import OpenEndpoint
from tokendial.tracking import registry

EXAMPLES = [ExampleAnswers(b"", "q", "t", {4: "yes"}, {4: 1.0})]
RUNGS = (Rung(count=4, quality=1.0, quality_ci=(1, 1), cost_flops=1),)


class Handle:
    """To a version's replicas: what it is, and the one item that each answer is."""

    def __init__(self, served: Any, answer: Callable[[ServeRequest], Awaitable[Any]]) -> None:
        self.served, self.answer = SimpleNamespace(remote=served), answer

    def options(self, method_name: str, stream: bool) -> "Handle":
        assert (method_name, stream) == ("answers", True)
        return self

    async def remote(self, requests: list[ServeRequest]) -> Any:
        [request] = requests
        yield [(0, await self.answer(request))]


class ScriptedEndpoint:
    """Starts versions whose answers are those of the function in `says` under the version's name."""

    def __init__(self, says: dict[str, Callable[[], Awaitable[str]]]) -> None:
        self.says = says
        self.told: list[str] = []
        self.broken: dict[str, Exception] = {}
        self.settings = SimpleNamespace(start_timeout_s=0.2)

    def _told(self, what: str) -> None:
        self.told.append(what)
        if what in self.broken:
            raise self.broken.pop(what)

    def start(self, source: Source, examples: Any) -> Any:
        if broken := self.broken.pop(f"start {source.version}", None):
            raise broken

        async def served() -> Served:
            return Served(source.name, source.version, "accuracy", 1, RUNGS)

        async def answer(request: ServeRequest) -> Whole:
            return Whole(await self.says[source.version](), Done("stop", 1, 1, (4,), (4,), None, "asked"))

        return SimpleNamespace(source=source, handle=Handle(served, answer))

    def switch(self, to: Any) -> None:
        self._told(f"switch {to.source.version}")

    def drop(self, running: Any) -> None:
        self._told(f"drop {running.source.version}")

    def drop_others(self, than: Any) -> None:
        self._told(f"drop all but {than.source.version}")

    def count(self, outcome: str) -> None:
        self.told.append(outcome)

    def close(self) -> None:
        self.told.append("closed")


async def right() -> str:
    return "yes"


async def wrong() -> str:
    return "no"


async def dead() -> str:
    raise OSError("the actor died")


async def silent() -> str:
    await asyncio.sleep(60)
    return "yes"


@pytest.mark.parametrize(
    ("says", "reason"),
    [(wrong, "does not answer as recorded"), (dead, "the actor died"), (silent, "longer than 0.2 s")],
    ids=["wrong", "dead", "silent"],
)
def test_a_bad_version_is_refused_with_the_reason_and_the_old_one_serves_on(
    says: Callable[[], Awaitable[str]], reason: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep, "examples_of", lambda source: EXAMPLES)
    endpoint = ScriptedEndpoint({"1": right, "2": says, "3": right})
    keeper = Keeper(endpoint, None, lambda line: None)  # type: ignore[arg-type]
    keeper.change(Source("m", "1"), "alice", "first")
    with pytest.raises(WorkFailed, match=reason):
        keeper.change(Source("m", "2"), "bob", "a try")
    assert endpoint.told == ["switch 1", "drop all but 1", "drop 2", "refused"]
    keeper.change(Source("m", "3"), "bob", "mended")
    assert endpoint.told[4:] == ["switch 3", "promoted", "drop all but 3"]
    changes = [json.loads(line) for line in (home / "served" / CHANGES).read_text().splitlines()]
    assert [(each["version"], each["outcome"], each["before"]) for each in changes] == [
        ("1", "promoted", None),
        ("2", "refused", "1"),
        ("3", "promoted", "1"),
    ]
    assert reason in changes[1]["reason"]


class CrowdedEndpoint(ScriptedEndpoint):
    """Has no room for the first golden prompt of a version."""

    def start(self, source: Source, examples: Any) -> Any:
        started = super().start(source, examples)
        whole = started.handle.answer
        refusals = [Refusal("busy", "1 requests are waiting", retry_after_s=0.01, full=True)]

        async def answer(request: ServeRequest) -> Whole | Refusal:
            return refusals.pop() if refusals else await whole(request)

        started.handle.answer = answer
        return started


def test_a_golden_prompt_that_finds_no_room_is_asked_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "examples_of", lambda source: EXAMPLES)
    keeper = Keeper(CrowdedEndpoint({"1": right}), None, lambda line: None)  # type: ignore[arg-type]
    assert keeper.change(Source("m", "1"), "alice", "first").version == "1"


def test_a_version_whose_golden_prompts_are_away_is_neither_served_nor_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = {"2"}

    def examples_of(source: Source) -> list[ExampleAnswers]:
        if source.version in away:
            raise WorkFailed("golden prompts are not to be had now")
        return EXAMPLES

    monkeypatch.setattr(keep, "examples_of", examples_of)
    endpoint = ScriptedEndpoint({"1": right, "2": right})
    keeper = Keeper(endpoint, None, lambda line: None)  # type: ignore[arg-type]
    keeper.change(Source("m", "1"), "alice", "first")
    before = list(endpoint.told)
    with pytest.raises(WorkFailed, match="not to be had now"):
        keeper.change(Source("m", "2"), "bob", "second")
    assert endpoint.told == before
    assert not keeper._refused
    away.clear()
    assert keeper.change(Source("m", "2"), "bob", "second").version == "2"


Following = tuple[Keeper, ScriptedEndpoint, list[str]]


@pytest.fixture
def following(home: Path, monkeypatch: pytest.MonkeyPatch) -> Following:
    """A keeper that serves version 1 of a model whose alias has moved to 2, its endpoint, and what was said."""
    monkeypatch.setattr(keep, "examples_of", lambda source: EXAMPLES)
    monkeypatch.setattr(registry, "resolve", lambda uri, ask: registry.ModelVersion("m", 2, None, {}))
    monkeypatch.setattr(registry, "history", lambda uri, name: [])
    said: list[str] = []
    endpoint = ScriptedEndpoint({"1": right, "2": right})
    keeper = Keeper(endpoint, Followed("sqlite://", "m", "champion"), said.append)  # type: ignore[arg-type]
    keeper.change(Source("m", "1"), "alice", "first")
    endpoint.told.clear()
    return keeper, endpoint, said


@pytest.mark.parametrize("where", ["start", "proof"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_endpoint_that_is_told_to_end_in_the_midst_of_a_change_ends_at_once(
    following: Following, where: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, endpoint, _ = following
    endpoint.settings.start_timeout_s = 60
    endpoint.says["2"] = silent
    if where == "start":
        monkeypatch.setattr(endpoint, "start", lambda *_: time.sleep(60))
    served = Served("m", "1", "accuracy", 1, RUNGS)
    opened = OpenEndpoint(keeper, served, "http://", serve_settings(["follow_s=0.01"]), keys=False)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    began = time.monotonic()
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    opened.wait()
    assert time.monotonic() - began < 5
    assert endpoint.told == ["closed"]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_what_ray_raises_in_a_change_is_told_and_the_next_look_tries_again(following: Following) -> None:
    keeper, endpoint, said = following
    endpoint.broken = {"switch 2": TimeoutError("Proxies not available after 60s.")}
    keeper.look()
    assert said[-1] == "the alias could not be followed: TimeoutError: Proxies not available after 60s."
    assert endpoint.told == ["switch 2", "switch 1", "drop 2"]
    keeper.look()
    assert endpoint.told[3:] == ["switch 2", "promoted", "drop all but 2"]


def test_a_version_that_ray_was_not_there_to_start_is_not_refused(following: Following) -> None:
    keeper, endpoint, said = following
    endpoint.broken = {"start 2": ClusterAway("Ray Serve does not answer: the actor is restarting")}
    keeper.look()
    endpoint.broken = {"start 2": ClusterAway("Ray Serve does not answer: the actor is restarting")}
    keeper.look()
    assert said.count("Ray Serve does not answer: the actor is restarting") == 1
    assert (said[-1], endpoint.told) == ("Ray Serve does not answer: the actor is restarting", [])
    keeper.look()
    assert endpoint.told == ["switch 2", "promoted", "drop all but 2"]


def test_no_other_version_is_started_before_one_that_failed_is_ended(following: Following) -> None:
    keeper, endpoint, said = following
    endpoint.broken = {each: TimeoutError("the controller restarts") for each in ("switch 2", "switch 1")}
    keeper.look()
    assert endpoint.told == ["switch 2", "switch 1"], "the endpoint may still use version 2"
    endpoint.broken = {each: TimeoutError("the controller restarts") for each in ("switch 1", "drop 2")}
    keeper.look()
    assert endpoint.told[2:] == ["switch 1"]
    keeper.look()
    assert said[-1] == "a change of version could not be cleared up: TimeoutError: the controller restarts"
    assert endpoint.told[3:] == ["switch 1", "drop 2"]
    keeper.look()
    assert endpoint.told[5:] == ["drop 2", "switch 2", "promoted", "drop all but 2"]


def test_a_change_that_took_traffic_stands_and_the_version_before_it_is_ended_when_ray_is_back(
    following: Following, home: Path
) -> None:
    keeper, endpoint, said = following
    endpoint.broken = {"drop all but 2": ConnectionError("the controller restarts")}
    keeper.look()
    assert endpoint.told == ["switch 2", "promoted", "drop all but 2"]
    assert said[-1] == "a change of version could not be cleared up: ConnectionError: the controller restarts"
    assert json.loads((home / "served" / CHANGES).read_text().splitlines()[-1])["outcome"] == "promoted"
    keeper.look()
    keeper.look()
    assert endpoint.told[3:] == ["drop all but 2"]


def test_a_version_whose_golden_prompts_cannot_be_read_is_refused_once(
    following: Following, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, endpoint, said = following
    asked: list[str] = []

    def examples_of(source: Source) -> list[ExampleAnswers]:
        asked.append(source.version)
        raise ConfigError("m/2 cannot be held against its run")

    monkeypatch.setattr(keep, "examples_of", examples_of)
    keeper.look()
    assert said[-1] == "version 2 of m was refused: m/2 cannot be held against its run"
    assert json.loads((home / "served" / CHANGES).read_text().splitlines()[-1])["outcome"] == "refused"
    keeper.look()
    assert (asked, endpoint.told) == (["2"], ["refused"])


def test_a_number_that_another_model_was_given_is_another_version(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, endpoint, _ = following
    for digest in ("a", "a", "b"):
        version = registry.ModelVersion("m", 2, None, {"sha256.SHA256SUMS": digest})
        monkeypatch.setattr(registry, "resolve", lambda uri, ask, version=version: version)
        keeper.look()
    assert endpoint.told == ["switch 2", "promoted", "drop all but 2"] * 2


def test_a_first_version_that_endpoint_processes_may_have_been_told_of_is_not_dropped_under_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep, "examples_of", lambda source: EXAMPLES)
    endpoint = ScriptedEndpoint({"1": right})
    endpoint.broken = {"switch 1": WorkFailed("the endpoint did not take it")}
    with pytest.raises(WorkFailed, match="did not take it"):
        Keeper(endpoint, None, lambda line: None).change(Source("m", "1"), "alice", "first")  # type: ignore[arg-type]
    assert endpoint.told == ["switch 1"]

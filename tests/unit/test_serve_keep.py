"""A version that cannot prove itself is refused with the reason, and the one before it goes on serving."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokendial.failures import WorkFailed
from tokendial.model_folder import Rung
from tokendial.results import ExampleAnswers
from tokendial.serve import keep
from tokendial.serve.backend import Served, Whole
from tokendial.serve.keep import CHANGES, Keeper
from tokendial.serve.replica import Refusal
from tokendial.serve.request import Done, ServeRequest
from tokendial.serve.source import Followed, Source
from tokendial.tracking import registry

EXAMPLES = [ExampleAnswers(b"", "q", "t", {4: "yes"}, {4: 1.0})]
RUNGS = (Rung(count=4, quality=1.0, quality_ci=(1, 1), cost_flops=1),)


class Handle:
    """To a version's replicas: what it is, and the one item that each answer is."""

    def __init__(self, served: Any, answer: Callable[[ServeRequest], Awaitable[Any]]) -> None:
        self.served, self.answer = SimpleNamespace(remote=served), answer

    def options(self, method_name: str, stream: bool) -> "Handle":
        assert (method_name, stream) == ("answer", True)
        return self

    async def remote(self, request: ServeRequest) -> Any:
        yield await self.answer(request)


class ScriptedEndpoint:
    """Starts versions whose answers are those of the function in `says` under the version's name."""

    def __init__(self, says: dict[str, Callable[[], Awaitable[str]]]) -> None:
        self.says = says
        self.told: list[str] = []
        self.broken: Exception | None = None

    def start(self, source: Source, examples: Any) -> Any:
        async def served() -> Served:
            return Served(source.name, source.version, "accuracy", 1, RUNGS)

        async def answer(request: ServeRequest) -> Whole:
            return Whole(await self.says[source.version](), Done("stop", 1, 1, (4,), (4,), None, "asked"))

        return SimpleNamespace(source=source, handle=Handle(served, answer))

    def switch(self, to: Any) -> None:
        self.told.append(f"switch {to.source.version}")
        if self.broken is not None:
            error, self.broken = self.broken, None
            raise error

    def drop(self, running: Any) -> None:
        self.told.append(f"drop {running.source.version}")

    def drop_others(self, than: Any) -> None:
        self.told.append(f"drop all but {than.source.version}")

    def count(self, outcome: str) -> None:
        self.told.append(outcome)


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
    monkeypatch.setattr(keep, "GOLDEN_TIMEOUT_S", 0.2)
    endpoint = ScriptedEndpoint({"1": right, "2": says, "3": right})
    keeper = Keeper(endpoint, None, lambda line: None)  # type: ignore[arg-type]
    keeper.change(Source("m", "1"), "alice", "first")
    with pytest.raises(WorkFailed, match=reason):
        keeper.change(Source("m", "2"), "bob", "a try")
    assert endpoint.told == ["switch 1", "drop all but 1", "drop 2", "refused"]
    keeper.change(Source("m", "3"), "bob", "mended")
    assert endpoint.told[4:] == ["switch 3", "drop all but 3", "promoted"]
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
    assert "2" not in keeper._refused
    away.clear()
    assert keeper.change(Source("m", "2"), "bob", "second").version == "2"


def test_what_ray_raises_in_a_change_is_told_and_the_next_look_tries_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep, "examples_of", lambda source: EXAMPLES)
    monkeypatch.setattr(keep, "registered", lambda uri, name, version, served: Source(served, str(version)))
    monkeypatch.setattr(registry, "resolve", lambda uri, ask: SimpleNamespace(version=2))
    monkeypatch.setattr(registry, "history", lambda uri, name, alias: [])
    said: list[str] = []
    endpoint = ScriptedEndpoint({"1": right, "2": right})
    keeper = Keeper(endpoint, Followed("sqlite://", "m", "champion"), said.append)  # type: ignore[arg-type]
    keeper.change(Source("m", "1"), "alice", "first")
    endpoint.broken = TimeoutError("Proxies not available after 60s.")
    keeper.look()
    assert said[-1] == "the alias could not be followed: TimeoutError: Proxies not available after 60s."
    assert endpoint.told[2:] == ["switch 2", "switch 1", "drop 2"]
    keeper.look()
    assert endpoint.told[5:] == ["switch 2", "drop all but 2", "promoted"]


def test_a_first_version_that_endpoint_processes_may_have_been_told_of_is_not_dropped_under_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep, "examples_of", lambda source: EXAMPLES)
    endpoint = ScriptedEndpoint({"1": right})
    endpoint.broken = WorkFailed("the endpoint did not take it")
    with pytest.raises(WorkFailed, match="did not take it"):
        Keeper(endpoint, None, lambda line: None).change(Source("m", "1"), "alice", "first")  # type: ignore[arg-type]
    assert endpoint.told == ["switch 1"]

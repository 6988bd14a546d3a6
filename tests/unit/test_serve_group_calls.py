"""Whole answers that are asked for in one call: each has an outcome of its own, whatever becomes of the others."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.exceptions import ReplicaUnavailableError
from tokendial.failures import WorkFailed
from tokendial.serve import calls
from tokendial.serve.backend import Whole
from tokendial.serve.calls import Calls
from tokendial.serve.replica import EngineReplica, Refusal
from tokendial.serve.request import Done, Sampling, ServeRequest

DONE = Done("stop", 1, 1, (4,), (4,), None, "asked")


def request(name: str) -> ServeRequest:
    return ServeRequest(name, (), (), (), Sampling(1))


class Replica:
    """A handle to one replica over an engine that says a request's name once that is let go; `groups` came together."""

    def __init__(self) -> None:
        self.replica: Any = EngineReplica.__new__(EngineReplica)
        self.replica._asked = {}
        self.replica._answer = self._answer
        self.groups: list[list[str]] = []
        self.ended: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.takes = asyncio.Event()
        self.takes.set()
        self.lost = False

    async def _answer(self, asked: ServeRequest) -> Any:
        try:
            await self.gates.setdefault(asked.id, asyncio.Event()).wait()
        finally:
            self.ended.append(asked.id)
        if asked.id == "bad":
            return WorkFailed("the model failed")
        if asked.id == "no":
            return Refusal("busy", "full")
        return Whole(asked.id, DONE)

    def let(self, *names: str) -> None:
        for name in names:
            self.gates.setdefault(name, asyncio.Event()).set()

    def options(self, method_name: str, stream: bool) -> Any:
        assert (method_name, stream) == ("answers", True)
        return SimpleNamespace(remote=self._remote)

    def _remote(self, requests: list[ServeRequest]) -> Any:
        self.groups.append([each.id for each in requests])
        return Response(self, self.replica.answers(requests))

    def broadcast(self, method: str, ids: list[str]) -> Any:
        assert method == "forget"

        async def results_async(**_: Any) -> list[None]:
            return [await self.replica.forget(ids)]

        return SimpleNamespace(results_async=results_async)


class Response:
    """To one call."""

    def __init__(self, replica: Replica, items: Any) -> None:
        self._replica, self._items = replica, items

    async def _fetch_future_result_async(self) -> None:
        await self._replica.takes.wait()
        if self._replica.lost:
            raise ReplicaUnavailableError("engine")

    def __aiter__(self) -> Any:
        return self._items

    def cancel(self) -> None:
        self._closing = asyncio.ensure_future(self._items.aclose())


def run(use: Callable[[Replica, Calls], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        replica = Replica()
        await asyncio.wait_for(use(replica, Calls(replica)), 10)  # type: ignore[arg-type]

    asyncio.run(main())


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_comes_together_goes_together_and_ends_apart() -> None:
    async def use(replica: Replica, to: Calls) -> None:
        asked = {name: to.ask(request(name)) for name in ("a", "b", "bad", "no", "c")}
        replica.let("b")
        assert (await asked["b"].outcome) == Whole("b", DONE)
        assert not asked["a"].outcome.done()
        replica.let("bad", "no", "a", "c")
        with pytest.raises(WorkFailed, match="the model failed"):
            await asked["bad"].outcome
        assert (await asked["no"].outcome) == Refusal("busy", "full")
        assert [await asked[name].outcome for name in ("a", "c")] == [Whole("a", DONE), Whole("c", DONE)]
        assert replica.groups == [["a", "b", "bad", "no", "c"]]
        await settled()
        assert (replica.replica._asked, to._tasks) == ({}, set())

    run(use)


def test_what_comes_while_a_call_is_on_its_way_goes_with_the_next_and_none_is_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "WAIT_S", 5.0)

    async def use(replica: Replica, to: Calls) -> None:
        replica.takes.clear()
        asked = [to.ask(request("0"))]
        await settled()
        asked += [to.ask(request(str(number))) for number in range(1, 12)]
        await settled()
        assert replica.groups == [["0"]]
        replica.takes.set()
        replica.let(*map(str, range(12)))
        for each in asked:
            await each.outcome
        assert list(map(len, replica.groups)) == [1, 8, 3]

    run(use)


def test_a_call_that_no_replica_takes_does_not_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WAIT_S", 0.01)

    async def use(replica: Replica, to: Calls) -> None:
        replica.takes.clear()
        stuck = to.ask(request("stuck"))
        await asyncio.sleep(0.05)
        to.ask(request("next"))
        await asyncio.sleep(0.05)
        assert replica.groups == [["stuck"], ["next"]]
        assert not stuck.taken.is_set()

    run(use)


def test_who_leaves_ends_his_own_answer_only_and_the_last_one_the_call() -> None:
    async def use(replica: Replica, to: Calls) -> None:
        first, second = to.ask(request("a")), to.ask(request("b"))
        await first.taken.wait()
        await settled()
        to.leave(first)
        await settled()
        assert replica.ended == ["a"]
        replica.let("b")
        assert (await second.outcome) == Whole("b", DONE)
        to.leave(second)
        third = to.ask(request("c"))
        await third.taken.wait()
        await settled()
        to.leave(third)
        await settled()
        assert replica.ended == ["a", "b", "c"]

    run(use)


def test_who_leaves_before_the_call_is_taken_is_forgotten_once_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WAIT_S", 5.0)

    async def use(replica: Replica, to: Calls) -> None:
        replica.takes.clear()
        first, second = to.ask(request("a")), to.ask(request("b"))
        await settled()
        late = to.ask(request("late"))
        to.leave(first)
        to.leave(late)
        replica.takes.set()
        await settled()
        replica.let("b")
        assert (await second.outcome) == Whole("b", DONE)
        await settled()
        assert (replica.groups, replica.ended) == ([["a", "b"]], ["b"])
        assert replica.replica._asked == {}, "the other one was not even begun"

    run(use)


def test_a_lost_replica_is_told_to_each_who_asked() -> None:
    async def use(replica: Replica, to: Calls) -> None:
        replica.lost = True
        asked = [to.ask(request(name)) for name in ("a", "b")]
        for each in asked:
            await each.taken.wait()
            with pytest.raises(ReplicaUnavailableError):
                await each.outcome

    run(use)

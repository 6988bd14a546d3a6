"""What an endpoint process makes of what its replicas say."""

import asyncio
import pickle
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from endpoint_lab import ScriptedBackend, get, running
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from tokendial.serve import endpoint
from tokendial.serve.backend import Served
from tokendial.serve.calls import Calls
from tokendial.serve.endpoint import ReplicaBackend
from tokendial.serve.exposition import Exposition
from tokendial.serve.ingress import Options, create_app
from tokendial.serve.replica import Refusal
from tokendial.serve.request import Busy, Deadline, Sampling, ServeRequest

REQUEST = ServeRequest("id", (), (), (), Sampling(1))


def over(handle: Any, most: int = 1) -> ReplicaBackend:
    """A backend over a handle to replicas, at most so many."""
    backend = ReplicaBackend(Exposition(), most)
    backend._handle, backend._calls, backend._served = handle, Calls(handle), Served("m", "1", "accuracy", 0, ())
    return backend


async def first(backend: ReplicaBackend, request: ServeRequest, stream: bool) -> Any:
    return await (anext(backend.stream(lambda _: request)) if stream else backend.answer(lambda _: request))


class Replicas:
    """A handle whose replicas refuse, one after another."""

    def __init__(self, *refusals: Refusal) -> None:
        self._refusals = iter(refusals)

    def options(self, method_name: str, **_: Any) -> Any:
        return SimpleNamespace(remote=lambda _: Said(next(self._refusals), whole=method_name == "answers"))


class Said:
    """One reply, the only item, after a while."""

    def __init__(self, reply: Any, whole: bool, after_s: float = 0.0) -> None:
        self._item = [(0, reply)] if whole else reply
        self._after_s = after_s

    async def __aiter__(self) -> Any:
        await asyncio.sleep(self._after_s)
        yield self._item

    async def _fetch_future_result_async(self) -> None:
        """Ray's, once a replica has taken the request."""

    def cancel(self) -> None:
        pass


def full(replica: str) -> Refusal:
    return Refusal("busy", "4 requests are waiting", retry_after_s=1.0, full=True, replica=replica)


def refusals(most: int, *said: Refusal, stream: bool = False, apart_s: float = 0.0) -> list[bool]:
    """Whether each refusal is told as one for all, of an endpoint with at most so many replicas."""

    async def use() -> list[bool]:
        backend = over(Replicas(*said), most)
        found = []
        for _ in said:
            with pytest.raises(Busy) as busy:
                await first(backend, REQUEST, stream)
            found.append(busy.value.full)
            await asyncio.sleep(apart_s)
        return found

    return asyncio.run(use())


@pytest.mark.parametrize("stream", [False, True])
def test_one_full_replica_speaks_for_all_only_where_there_can_be_no_other(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "HOLD_S", 10.0)
    assert refusals(1, full("a"), full("a"), stream=stream) == [True, True]
    assert refusals(3, full("a"), full("b"), full("a"), stream=stream) == [False] * 3
    assert refusals(2, full("a"), full("b"), full("a"), stream=stream) == [False, True, True]


def test_what_another_replica_said_counts_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "HOLD_S", 0.01)
    assert refusals(2, full("a"), full("b"), apart_s=0.02) == [False, False]


def test_a_refusal_for_a_requests_own_reasons_is_never_for_all() -> None:
    late = Refusal("busy", "no time to answer within the target", retry_after_s=1.0, replica="a")
    assert refusals(1, late) == [False]


def test_many_who_ask_for_the_load_at_once_ask_the_replicas_once() -> None:
    asked: list[str] = []

    class Loads:
        def broadcast(self, method: str) -> "Loads":
            asked.append(method)
            return self

        async def results_async(self, **_: Any) -> list[Any]:
            await asyncio.sleep(0.05)
            return [{"queued": 1}, ConnectionError()]

    async def use() -> None:
        backend = ReplicaBackend(Exposition(), 1)
        backend._handle = Loads()  # type: ignore[assignment]
        impatient = asyncio.ensure_future(backend.load())
        await asyncio.sleep(0.01)
        impatient.cancel()
        found = await asyncio.gather(*(backend.load() for _ in range(20)))
        assert found == [{"0": {"queued": 1}}] * 20

    asyncio.run(use())
    assert asked == ["load"]


def test_without_an_engine_the_endpoint_is_not_ready_and_its_page_says_no_replicas() -> None:
    class Nobody:
        def broadcast(self, _method: str) -> "Nobody":
            return self

        async def results_async(self, **_: Any) -> list[Any]:
            raise DeploymentUnavailableError(DeploymentID("engine", "tokendial-engine-1"))

    backend = ReplicaBackend(Exposition(), 1)
    backend._handle, backend._served = Nobody(), ScriptedBackend().served()  # type: ignore[assignment]
    with running(create_app(backend, Options())) as url:
        assert get(url, "/readyz")[0] == 503
        assert get(url, "/load")[1] == {"model": "scripted", "replicas": {}}
        status, text, _ = get(url, "/metrics")
    assert status == 200
    assert 'tokendial_serve_replicas{model="scripted"} 0.0' in text


class Absent:
    """A handle whose replicas are gone for a while, then none takes a request; it knows the deadlines it was given."""

    def __init__(self, gone: int) -> None:
        self._gone = gone
        self.deadlines: list[float] = []
        self.cancelled = 0

    def options(self, **_: Any) -> "Absent":
        return self

    def remote(self, asked: Any) -> "Absent":
        [request] = asked if isinstance(asked, list) else [asked]
        assert request.deadline is not None
        self.deadlines.append(request.deadline.at)
        return self

    async def _fetch_future_result_async(self) -> None:
        self._gone -= 1
        if self._gone >= 0:
            raise ReplicaUnavailableError("engine")
        await asyncio.sleep(60)

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.mark.parametrize("stream", [False, True])
def test_while_no_replica_takes_a_request_it_waits_no_longer_than_to_its_deadline(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "RETRY_S", 0.05)
    absent = Absent(gone=2)

    async def use() -> None:
        await first(over(absent), replace(REQUEST, deadline=Deadline(0.5)), stream)

    began = time.monotonic()
    with pytest.raises(Busy, match="not started in time") as late:
        asyncio.run(asyncio.wait_for(use(), 20))
    assert (late.value.cause, late.value.full) == ("expired", False)
    assert 0.5 <= time.monotonic() - began < 5
    assert len(absent.deadlines) == 3
    assert len(set(absent.deadlines)) == 1
    assert absent.cancelled


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_lost_replica_did_not_answer_is_made_anew_for_the_version_that_is_asked_then(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "RETRY_S", 0.01)
    made: list[str] = []

    async def use() -> Any:
        backend = over(Absent(gone=1))

        def make(served: Served) -> ServeRequest:
            made.append(served.version)
            backend._handle, backend._calls = Slow(), Calls(Slow())  # type: ignore[assignment, arg-type]
            backend._served = replace(served, version="2")
            return replace(REQUEST, deadline=Deadline(5))

        return await (anext(backend.stream(make)) if stream else backend.answer(make))

    assert asyncio.run(use()) == "yes"
    assert made == ["1", "2"]


class Slow:
    """A handle whose replica takes a request at once, and begins to say something long after its deadline."""

    def options(self, method_name: str, **_: Any) -> Any:
        return SimpleNamespace(remote=lambda _: Said("yes", whole=method_name == "answers", after_s=0.3))


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_replica_has_taken_may_take_longer_than_the_time_to_start(stream: bool) -> None:
    async def use() -> Any:
        return await first(over(Slow()), replace(REQUEST, deadline=Deadline(0.05)), stream)

    assert asyncio.run(use()) == "yes"


def test_a_deadline_travels_as_what_is_left_when_it_is_sent() -> None:
    deadline = Deadline(60.0)
    deadline.at -= 20
    arrived = pickle.loads(pickle.dumps(deadline))
    assert arrived.left_s == pytest.approx(40, abs=1)

"""Which Ray cluster an endpoint is opened on, and what it ends there."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError
from ray.serve.schema import ApplicationStatus
from tokendial.failures import ClusterAway, WorkFailed
from tokendial.serve import application, declared
from tokendial.serve.application import ENDPOINT, Endpoint, Running
from tokendial.serve.dial import Terms
from tokendial.serve.ingress import Options
from tokendial.serve.options import serve_settings
from tokendial.serve.source import Source

RUNNING, DELETING = ApplicationStatus.RUNNING, ApplicationStatus.DELETING


class Serve:
    """Ray Serve's applications by their status; one that is deleted without waiting lives on, as answers end."""

    def __init__(self, **found: ApplicationStatus) -> None:
        self.found = {name.replace("_", "-"): status for name, status in found.items()}

    def start(self, **_: Any) -> None:
        pass

    def status(self) -> Any:
        return SimpleNamespace(applications={name: SimpleNamespace(status=s) for name, s in self.found.items()})

    def delete(self, name: str, _blocking: bool = True) -> None:
        if _blocking:
            raise TimeoutError(f"Some of these applications weren't deleted after 60s: {[name]}")
        if name in self.found:
            self.found[name] = DELETING

    @property
    def going_on(self) -> set[str]:
        return {name for name, status in self.found.items() if status is RUNNING}


def endpoint_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.setattr(application, "serve", serve)
    monkeypatch.setattr(application, "beside_cpus", lambda: 0.0)
    monkeypatch.setattr(application, "Hold", lambda: SimpleNamespace(take=lambda who: None, release=lambda: None))
    return Endpoint(serve_settings(["port=0", "timeout_s=0.1"]), None, ours=False)


@pytest.mark.parametrize(
    ("address", "joined", "ours"),
    [(None, "local", True), ("", "local", True), ("10.0.0.1:6379", "10.0.0.1:6379", False)],
    ids=["unset", "empty", "given"],
)
def test_only_a_cluster_that_is_named_is_joined_and_what_is_started_is_its_own(
    address: str | None, joined: str, ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def init(address: str | None, **_: Any) -> None:
        asked.append(address)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.touch(0o644)
    for name in application.CLUSTER_ENVIRONMENT:
        # `connect` sets them where they are not set; here they are taken back.
        monkeypatch.setenv(name, "kept")
    if address is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert application.connect() is ours
    assert asked == [joined]
    assert token.stat().st_mode & 0o077 == 0, "Ray writes it for everyone to read"


@pytest.mark.parametrize("before", [{}, {"tokendial": DELETING}, {"tokendial": RUNNING}], ids=["none", "old", "runs"])
def test_a_failed_start_ends_no_endpoint_that_was_there_before(
    before: dict[str, ApplicationStatus], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = Serve(**before, tokendial_engine_7_4=RUNNING)
    endpoint = endpoint_on(serve, monkeypatch)
    endpoint.give_up()
    assert "tokendial-engine-7-4" in serve.going_on, "nothing was opened"
    endpoint.open("a test")
    serve.found.setdefault(ENDPOINT, RUNNING)
    endpoint.give_up()
    assert serve.going_on == ({ENDPOINT, "tokendial-engine-7-4"} if before.get(ENDPOINT) is RUNNING else set())


def test_versions_go_on_counting_from_those_that_are_there_and_what_is_left_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve = Serve(tokendial=RUNNING, tokendial_engine_7_4=RUNNING, tokendial_engine_12_5=RUNNING, other=RUNNING)
    endpoint = endpoint_on(serve, monkeypatch)
    endpoint.open("a test")
    assert next(endpoint._numbers) == 13
    endpoint.drop_others(Running(Source("m", "5"), "tokendial-engine-12-5", None))  # type: ignore[arg-type]
    assert serve.going_on == {ENDPOINT, "tokendial-engine-12-5", "other"}


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (ActorUnavailableError("the controller restarts", None), ClusterAway),
        (TimeoutError("Proxies not available after 60s."), ClusterAway),
        (RuntimeError("Deploying application failed: ValueError: no such file"), WorkFailed),
    ],
    ids=["controller away", "no proxies", "version fails"],
)
def test_a_start_that_ray_fails_at_is_told_from_a_version_that_does(
    raised: Exception, told: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise raised

    serve = Serve()
    serve.run = run  # type: ignore[attr-defined]
    with pytest.raises(WorkFailed) as failed:
        endpoint_on(serve, monkeypatch)._run(None, "tokendial-engine-1-4")
    assert type(failed.value) is told


def test_an_end_that_takes_longer_than_an_answer_may_is_told_and_waited_for_no_longer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    serve = Serve(tokendial=RUNNING, tokendial_engine_1_4=RUNNING, other=RUNNING)
    endpoint_on(serve, monkeypatch).close()
    assert serve.going_on == {"other"}
    assert "tokendial, tokendial-engine-1-4: still finishing answers" in caplog.text


def test_an_endpoint_process_is_replaced_where_it_would_be_started_with_something_else_and_only_there() -> None:
    def version(options: Options, keys: str | None = None) -> str:
        return application._code_version(options, keys, None, 4)

    hosts = frozenset({"a.example.com", "b.example.com", "c.example.com"})
    assert version(Options(image_hosts=hosts)) == version(Options(image_hosts=frozenset(sorted(hosts))))
    told = [Options(), Options(image_hosts=hosts), Options(terms=Terms(may_bend=True)), Options(share=0.5)]
    assert len({version(options) for options in told} | {version(Options(), "keys.db")}) == 5


@pytest.mark.parametrize(
    ("status", "closed"), [(RUNNING, 0), (ApplicationStatus.DEPLOYING, 0), (DELETING, 1)], ids=lambda each: str(each)
)
def test_a_keeper_that_is_stopped_ends_the_endpoint_only_where_its_application_is_removed(
    status: ApplicationStatus, closed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[str] = []
    serve = Serve(keeper=status)
    serve.get_replica_context = lambda: SimpleNamespace(app_name="keeper")  # type: ignore[attr-defined]
    monkeypatch.setattr(declared, "serve", serve)
    opened = SimpleNamespace(close=lambda: ends.append("closed"), look=lambda: None)
    monkeypatch.setattr(declared, "start", lambda *_: opened)
    keeper = declared.KeeperReplica.__new__(declared.KeeperReplica)
    asyncio.run(keeper.__init__(declared.Declared()))  # type: ignore[misc]
    # Serve calls it, and so does Python at the end.
    keeper.__del__()
    keeper.__del__()
    assert len(ends) == closed

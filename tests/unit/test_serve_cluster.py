"""Which Ray cluster an endpoint is opened on, and what it ends there."""

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve as real
from ray.exceptions import ActorUnavailableError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus
from tokendial.experiments import ConfigError
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
        self.ran: list[real.RunTarget] = []

    RunTarget, deployment, ingress = real.RunTarget, staticmethod(real.deployment), staticmethod(real.ingress)
    # What comes of an application that is run, and what is said of it.
    becomes, message = RUNNING, ""

    def start(self, **_: Any) -> None:
        pass

    def run_many(self, targets: list[real.RunTarget], **_: Any) -> list[Any]:
        self.ran += targets
        self.found |= {target.name: self.becomes for target in targets}
        return [SimpleNamespace(is_initialized=True)]

    def status(self) -> Any:
        said = {"engine": SimpleNamespace(message=self.message)}
        told = {name: SimpleNamespace(status=s, message="", deployments=said) for name, s in self.found.items()}
        return SimpleNamespace(applications=told)

    def delete(self, name: str, _blocking: bool = True) -> None:
        if _blocking:
            raise TimeoutError(f"Some of these applications weren't deleted after 60s: {[name]}")
        if name in self.found:
            self.found[name] = DELETING

    @property
    def going_on(self) -> set[str]:
        return {name for name, status in self.found.items() if status is RUNNING}


def endpoint_on(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    *settings: str,
    there: HTTPOptions | None = None,
    keys: str | None = None,
) -> Endpoint:
    """An endpoint on a cluster where Serve runs with the options `there`; None: it does not run yet."""
    client = SimpleNamespace(http_config=there, wait_for_proxies_serving=lambda: None)

    def found(raise_if_no_controller_running: bool = True) -> Any:
        return client if there or raise_if_no_controller_running else None

    monkeypatch.setattr(application, "_get_global_client", found)
    monkeypatch.setattr(application, "serve", serve)
    monkeypatch.setattr(application, "beside_cpus", lambda: 0.0)
    monkeypatch.setattr(application, "Hold", lambda: SimpleNamespace(take=lambda who: None, release=lambda: None))
    return Endpoint(serve_settings(["timeout_s=0.1", *(settings or ("port=0",))]), keys, ours=False)


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


@pytest.mark.parametrize("settings", [[], ["port=0"], ["port=8000", "host=127.0.0.1"]], ids=["none", "any", "the same"])
def test_where_serve_runs_already_the_endpoint_listens_where_that_does(
    settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        port = proxy.getsockname()[1]
        given = [each.replace("8000", str(port)) for each in settings or ["timeout_s=1"]]
        endpoint = endpoint_on(Serve(), monkeypatch, *given, there=HTTPOptions(host="127.0.0.1", port=port))
        endpoint.open("a test")
        assert endpoint.url == f"http://localhost:{port}"


@pytest.mark.parametrize(
    ("settings", "host", "keys", "told"),
    [
        (["port=8001"], "127.0.0.1", None, "listens at port = 8000"),
        (["host=0.0.0.0"], "127.0.0.1", "keys.db", "listens at host = '127.0.0.1'"),
        (["port=0"], "0.0.0.0", None, "listens at host = '0.0.0.0', off loopback; give keys=true"),
    ],
    ids=["another port", "another host", "no keys off loopback"],
)
def test_an_address_that_serve_does_not_have_is_refused_and_so_is_one_that_needs_keys(
    settings: list[str], host: str, keys: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = endpoint_on(Serve(), monkeypatch, *settings, there=HTTPOptions(host=host, port=8000), keys=keys)
    with pytest.raises(ConfigError, match=told):
        endpoint.open("a test")


def test_keys_open_an_endpoint_where_serve_listens_off_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = endpoint_on(Serve(), monkeypatch, there=HTTPOptions(host="0.0.0.0", port=8000), keys="keys.db")
    endpoint.open("a test")
    assert endpoint.url == "http://0.0.0.0:8000"


def test_a_route_that_another_application_has_is_told_and_refuses_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> list[Any]:
        raise RayServeException("Prefix / is being used by application 'theirs'.")

    serve = Serve()
    monkeypatch.setattr(serve, "run_many", run)
    with pytest.raises(ClusterAway, match="used by application 'theirs'"):
        endpoint_on(serve, monkeypatch).switch(Running(Source("m", "5"), "tokendial-engine-1-5", None))  # type: ignore[arg-type]


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
    "raised",
    [ActorUnavailableError("the controller restarts", None), TimeoutError("Proxies not available after 60s.")],
    ids=["controller away", "no proxies"],
)
def test_a_start_that_ray_fails_at_is_told_from_a_version_that_does(
    raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> list[Any]:
        raise raised

    serve = Serve()
    monkeypatch.setattr(serve, "run_many", run)
    with pytest.raises(ClusterAway):
        endpoint_on(serve, monkeypatch)._run(None, "tokendial-engine-1-4")


DEPLOYING, FAILED = ApplicationStatus.DEPLOYING, ApplicationStatus.DEPLOY_FAILED
UNSCHEDULED = (
    "Deployment 'engine' has 1 replicas that have taken more than 30s to be scheduled. This may be due to waiting for "
    'the cluster to auto-scale. Resources required for each replica: {"CPU": 1.0, "GPU": 1.0}, total resources: {}.'
)
FAILURES = {
    "fails": (FAILED, "ValueError: no such file", WorkFailed, "the version did not start: ValueError: no such file"),
    "hangs": (DEPLOYING, "has 1 replicas that have taken more than 30s to initialize", WorkFailed, "within 0.1 s"),
    "no room": (DEPLOYING, UNSCHEDULED, ClusterAway, r'for 0.1 s the cluster had no room .* {"CPU": 1.0, "GPU": 1.0}'),
}


@pytest.mark.parametrize(("becomes", "message", "kind", "told"), FAILURES.values(), ids=FAILURES)
def test_a_version_that_does_not_start_is_ended_and_its_reason_told(
    becomes: ApplicationStatus, message: str, kind: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = Serve()
    serve.becomes, serve.message = becomes, message
    monkeypatch.setattr(application.ray, "cluster_resources", dict)
    with pytest.raises(WorkFailed, match=told) as failed:
        endpoint_on(serve, monkeypatch, "start_timeout_s=0.1").start(Source("m", "4"))
    assert type(failed.value) is kind
    assert serve.found == {"tokendial-engine-1-4": DELETING}


def test_what_has_started_may_take_longer_to_end_than_a_request_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = Serve()
    monkeypatch.setattr(application.ray, "cluster_resources", dict)
    endpoint = endpoint_on(serve, monkeypatch, "timeout_s=2", "drain_s=90")
    endpoint.switch(endpoint.start(Source("m", "4")))
    deployed = [each.target._bound_deployment._deployment_config for each in serve.ran]
    assert [config.graceful_shutdown_timeout_s for config in deployed] == [90, 90]


def test_an_endpoint_that_does_not_take_a_version_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve = Serve(tokendial=RUNNING)
    serve.becomes = DEPLOYING
    version = Running(Source("m", "5"), "tokendial-engine-1-5", None)  # type: ignore[arg-type]
    with pytest.raises(WorkFailed, match=r"the endpoint did not take it: it was not ready within 0\.1 s"):
        endpoint_on(serve, monkeypatch, "start_timeout_s=0.1").switch(version)
    assert serve.found == {ENDPOINT: DEPLOYING}


def test_a_second_version_on_the_only_gpu_is_told_what_it_lacks_and_starts_once_it_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = {"CPU": 8.0}
    monkeypatch.setattr(application.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(application.ray, "available_resources", lambda: free)
    endpoint = Endpoint(serve_settings([]), None, ours=True)
    monkeypatch.setattr(endpoint, "_run", lambda bound, name: "its replicas")
    with pytest.raises(ClusterAway, match=r"needs 1 GPUs .* 0 are free; .* replicas\.gpus=0\.5 lets two share one"):
        endpoint.start(Source("m", "2"))
    free["GPU"] = 1.0
    assert endpoint.start(Source("m", "2")).handle == "its replicas"


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
    asked: list[tuple[str, ...]] = []

    def start(_model: str | None, settings: tuple[str, ...], *_: Any) -> Any:
        asked.append(settings)
        return opened

    monkeypatch.setattr(declared, "start", start)
    keeper = declared.KeeperReplica.__new__(declared.KeeperReplica)
    asyncio.run(keeper.__init__(declared.Declared(settings=("keys=false", "follow_s=9"))))  # type: ignore[misc]
    assert serve_settings(asked[0]).keys, "a key is always asked for"
    # Serve calls it, and so does Python at the end.
    keeper.__del__()
    keeper.__del__()
    assert len(ends) == closed

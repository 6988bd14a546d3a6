"""What may go to a cluster and what is refused before anything is sent; the packages that travel."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path, PureWindowsPath

import pytest
from tokendial import identity, runs
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.jobs import Cluster, Order, evaluation_order, search_order, serving_order, training_order
from tokendial.jobs.cluster import checked_address, find_token, is_loopback
from tokendial.jobs.order import CONFIG, check_places, with_slashes
from tokendial.jobs.package import archive, code, modules
from tokendial.progress import read_line
from tokendial.resolve import resolve


@pytest.fixture
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a token; returns where Ray's tools would look for one."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://ada:secret@head:8265", "came with a user or password"),
        ("ray://head:10001", "is not a dashboard's address; give http://HEAD:8265"),
        ("head:8265", "is not a dashboard's address"),
        ("http://head:8265?token=x", "is not a dashboard's address"),
        ("http://[head", r"--on 'http://\[head' is not an address; give http://HEAD:8265"),
        ("http://ada:secret@head:8265x", "--on 'head:8265x' is not an address"),
        ("http://head:99999", "is not an address"),
    ],
)
def test_addresses_that_are_no_dashboard_or_hold_a_password_are_refused(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        checked_address(address)
    assert "secret" not in str(caught.value)


def test_off_loopback_a_token_is_required_and_on_loopback_it_is_not(no_token: Path) -> None:
    assert find_token("http://127.0.0.1:8265") is None
    with pytest.raises(ConfigError, match="there is no token for the cluster at http://head:8265; put it into"):
        Cluster("http://head:8265")
    no_token.parent.mkdir()
    no_token.write_text("abc\n")
    no_token.chmod(0o644)
    assert find_token("http://head:8265") == "abc"
    assert no_token.stat().st_mode & 0o777 == 0o600


def test_only_addresses_of_this_machine_are_loopback() -> None:
    for host in ("127.0.0.1", "127.8.9.1", "[::1]", "localhost"):
        assert is_loopback(f"http://{host}:8265")
    for host in ("127.head.example", "head", "10.0.0.1", "[2001:db8::1]"):
        assert not is_loopback(f"http://{host}:8265")


def test_a_cluster_without_a_token_is_used_only_when_that_is_said(
    no_token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token("http://head:8265") is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-a-variable")
    assert find_token("http://head:8265") == "from-a-variable"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "with-a-newline\n")
    assert find_token("http://head:8265") == "with-a-newline"


@pytest.mark.parametrize("token", ["secret\nsecret", "secrét"])
def test_a_token_that_no_header_can_hold_is_refused_unseen(
    no_token: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    del no_token
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(ConfigError, match="is not one line of ASCII") as caught:
        find_token("http://head:8265")
    assert "secr" not in str(caught.value)


def test_a_training_order_holds_the_resolved_configuration_under_the_callers_own_name() -> None:
    config = resolve("digits.tiny", ("seed=5",), machine_cpus=None)
    order = training_order(config)
    assert order.run.startswith(f"{identity.user_name()}.digits.tiny.")
    assert order.arguments == ("train", "--config", "config.json", "--name", order.run, "--json")
    document = json.loads(order.files["config.json"])
    assert document["seed"] == 5
    assert runs.run_name(config.model_validate(document)) == order.run


def test_data_that_only_the_cluster_has_is_looked_for_there() -> None:
    with pytest.raises(ConfigError, match=r"data\.path '/mnt/only/there' does not exist"):
        resolve("digits.tiny", ["data.path=/mnt/only/there"], machine_cpus=None)
    config = resolve("digits.tiny", ["data.path=/mnt/only/there"], machine_cpus=None, elsewhere=True)
    order = training_order(config)
    assert json.loads(order.files[CONFIG])["data"]["path"] == "/mnt/only/there"


def test_names_of_orders_say_what_they_start_from_and_last_is_refused() -> None:
    config = resolve("digits.tiny", machine_cpus=None)
    assert training_order(config, source="ada.digits.1a2b3c4d").run.endswith("-from-1a2b3c4d")
    with pytest.raises(ConfigError, match="--from last is this machine's last run"):
        training_order(config, source="last")
    with pytest.raises(ConfigError, match=r"run name '\.\./up' is not admissible"):
        training_order(config, name="../up")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            {"data": {"path": "{here}"}},
            "data.path '.*' is a path of .*; put it on storage that is mounted at the same path",
        ),
        ({"data": {"path": "./images"}}, "data.path './images' is a path of this machine"),
        ({"model": {"vision": {"source": "{here}"}}}, "model.vision.source '.*' is a path of this machine"),
        ({"data": {"path": "s3://key:hidden@bucket/x"}}, r"data.path 's3://\*\*\*@bucket/x' came with a user or pass"),
        ({"tracking": {"uri": "sqlite:///x.db"}}, "tracking.uri 'sqlite:///x.db' is a file of this machine"),
    ],
    ids=("absolute", "relative", "weights", "password", "sqlite"),
)
def test_what_only_this_machine_can_read_is_refused_with_what_to_do(
    document: dict[str, object], words: str, tmp_path: Path
) -> None:
    filled = json.loads(json.dumps(document).replace("{here}", str(tmp_path)))
    with pytest.raises(ConfigError, match=words) as caught:
        check_places(filled)
    assert "hidden" not in str(caught.value)


def test_hub_ids_uris_paths_of_the_cluster_and_shared_folders_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("google/siglip-base", "s3://bucket/images", "/data/of/the/cluster"):
        check_places({"data": {"path": place}})
    monkeypatch.setenv("TOKENDIAL_SHARED", str(tmp_path))
    (tmp_path / "images").mkdir()
    check_places({"data": {"path": str(tmp_path / "images")}})


def test_a_model_folder_of_this_machine_is_not_scored_on_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is of this machine; give the name of a run of the cluster"):
        evaluation_order(str(tmp_path), {})
    order = evaluation_order("ada.digits.1a2b3c4d", {"counts": "1,4", "split": None})
    assert order.arguments == ("eval", "ada.digits.1a2b3c4d", "--counts", "1,4", "--json")


def test_a_model_folder_of_the_cluster_is_scored_there_under_a_name_that_ray_can_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray makes a file of a job's name, and forgets the job where it cannot."""
    order = evaluation_order("/only/there/model", {})
    assert order == Order("eval.-only-there-model", ("eval", "/only/there/model", "--json"))
    monkeypatch.setenv("TOKENDIAL_SHARED", str(tmp_path))
    assert evaluation_order(str(tmp_path), {}).arguments[1] == str(tmp_path)


def test_the_code_that_travels_is_whole_small_and_the_same_twice() -> None:
    package = code()
    assert package == code()
    assert len(package) <= 2_000_000
    names = set(zipfile.ZipFile(io.BytesIO(package)).namelist())
    for name in ("tokendial/cli.py", "tokendial_workloads/digits/data.py", "tokendial_kernels/pool/kernel.py"):
        assert name in names
    points = next(name for name in names if name.endswith("dist-info/entry_points.txt"))
    assert b"digits.tiny = tokendial_workloads" in zipfile.ZipFile(io.BytesIO(package)).read(points)
    assert not any("__pycache__" in name for name in names)


def test_own_modules_travel_and_installed_ones_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine/__init__.py", "mine/data.py", "beside.py"):
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "notes.txt").write_text("no module")
    monkeypatch.chdir(tmp_path)
    assert set(modules("mine.data:run", "digits")) == {"mine/__init__.py", "mine/data.py", "beside.py"}
    assert modules("digits", "json:loads", "tokendial_workloads.digits.experiments:tiny") == {}
    (tmp_path / "beside.py").write_bytes(b"#" * (5 << 20))
    with pytest.raises(ConfigError, match="the most sent is"):
        modules("mine.data:run")


def test_a_file_of_ones_own_travels_from_any_folder_under_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spaces").mkdir()
    for name in ("spaces/small.py", "spaces/large.py", "beside.py"):
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    assert set(modules("spaces/small.py:space")) == {"spaces/small.py", "beside.py"}
    for place in (f"{tmp_path}/beside.py", "../beside.py", "absent.py"):
        with pytest.raises(ConfigError, match="is no file under the working folder, which is what travels"):
            modules(f"{place}:space")


def test_archives_depend_on_content_alone() -> None:
    assert archive({"a": b"1", "b": b"2"}) == archive({"b": b"2", "a": b"1"})
    assert archive({"a": b"1"}) != archive({"a": b"2"})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("all 3/100 loss 0.812 · count 144", ("all", 3, 100, "loss 0.812 · count 144")),
        ("warm_tower 1/2", ("warm_tower", 1, 2, "")),
        ("starting workers", None),
        ("2026-01-01 12:00:00 INFO job 1/2", None),
    ],
)
def test_progress_lines_of_a_job_are_read_back(line: str, said: tuple[str, int, int, str] | None) -> None:
    latest = read_line(line)
    assert (latest and (latest["stage"], latest["step"], latest["total"], latest["detail"])) == said


def test_an_identity_that_was_sent_along_is_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = identity.Identity(user="ada", commit="1" * 40, diff="+x")
    (tmp_path / identity.FILE).write_text(sent.model_dump_json())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(identity.VARIABLE, identity.FILE)
    assert identity.capture() == sent


def test_a_space_in_a_folder_is_found_from_windows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "my_space.py").write_text("def space():\n    return {}\n")
    monkeypatch.chdir(tmp_path)
    there = search_order("digits.tiny", ("seed=0,1",), {}, None, "./spaces/my_space.py:space")
    assert there.arguments[3:5] == ("--space", "spaces/my_space.py:space")
    assert there.files.keys() == {"spaces/my_space.py"}
    with pytest.raises(ConfigError, match="is no file under the working folder"):
        search_order("digits.tiny", ("seed=0,1",), {}, None, "C:\\spaces\\my_space.py:space")
    monkeypatch.setattr("tokendial.jobs.order.Path", PureWindowsPath)
    assert with_slashes("spaces\\my_space.py:space") == "spaces/my_space.py:space"
    assert with_slashes("my.spaces:space") == "my.spaces:space"


def test_a_search_order_repeats_what_was_typed_under_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_space.py").write_text("def space():\n    return {}\n")
    monkeypatch.chdir(tmp_path)
    options = {"trials": 4, "new": False, "budget": None}
    orders = [search_order("digits.tiny", ("seed=0,1",), options, None, "my_space.py:space") for _ in range(2)]
    assert orders[0] == orders[1]
    name = orders[0].run
    words = ("digits.tiny", "seed=0,1", "--space", "my_space.py:space", "--trials", "4")
    assert orders[0].arguments == ("search", *words, "--name", name, "--json")
    assert orders[0].files.keys() == {"my_space.py"}
    assert search_order("digits.tiny", ("seed=0,1,2",), options, None, None).run != name
    more = search_order("digits.tiny", ("seed=0,1",), {**options, "trials": 8}, None, "my_space.py:space")
    assert (more.run, more.arguments != orders[0].arguments) == (name, True), "with more trials a search goes on"
    with pytest.raises(ConfigError, match=r"data\.path '/.*' is a path of this machine"):
        search_order("digits.tiny", (f"data.path=s3://bucket/x,{tmp_path}",), options, None, None)
    with pytest.raises(ConfigError, match=r"'s3://\*\*\*@bucket/x' came with a user or password"):
        search_order("digits.tiny", ("data.path=s3://key:hidden@bucket/x,s3://bucket/y",), options, None, None)
    assert search_order("digits.tiny", ("seed=0,1", "data.path=/mnt/only/there"), options, None, None).arguments
    with pytest.raises(ConfigError, match="unknown key 'seeed'"):
        search_order("digits.tiny", ("seeed=0,1", "seeed=2"), options, None, None)


def test_a_serving_order_gives_lists_and_flags_again() -> None:
    order = serving_order("tokendial-digits/3", ("host=0.0.0.0",), {"allow-image-host": ["a", "b"], "keys": True})
    words = ("host=0.0.0.0", "--model", "tokendial-digits/3", "--allow-image-host", "a", "--allow-image-host", "b")
    assert order.arguments == ("serve", *words, "--keys", "--json")
    assert order.run == "serve.tokendial-digits-3"


@pytest.mark.parametrize(
    ("overrides", "tracking", "words"),
    [
        ((), "http://ada:hidden@h:5000", r"--tracking-uri 'http://\*\*\*@h:5000' came with a user or password"),
        ((), "sqlite:///x.db", "--tracking-uri 'sqlite:///x.db' is a file of this machine"),
        (("name=http://ada:hidden@h",), None, r"name 'http://\*\*\*@h' came with a user or password"),
    ],
    ids=("password", "sqlite", "override"),
)
def test_what_an_endpoint_of_a_cluster_must_not_be_told_is_refused(
    overrides: tuple[str, ...], tracking: str | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        serving_order("model", overrides, {"tracking-uri": tracking, "allow-image-host": None})
    assert "hidden" not in str(caught.value)


def test_a_redirect_does_not_take_the_token_elsewhere(no_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    with HTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(WorkFailed, match="answered GET /api/jobs/ with 302"):
            Cluster(f"http://127.0.0.1:{server.server_port}").jobs()
        server.shutdown()
    assert seen == ["/api/jobs/"]

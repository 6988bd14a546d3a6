"""The model registry on a real SQLite store: versions, digests, the champion and the way back."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from served_model import export_model
from tokendial import promote, runs
from tokendial.experiments import ConfigError
from tokendial.identity import Identity
from tokendial.model_folder import DIGESTS, digests
from tokendial.results import RunResult, write_result
from tokendial.serve.source import locate
from tokendial.tracking import registry
from tokendial.tracking.server import connect
from tracking_samples import CURVE, config, fresh_store, result

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    (tmp_path / "runs").mkdir()
    return fresh_store(tmp_path / "runs")


def sealed(folder: Path, weights: bytes) -> Path:
    """A folder as `export` leaves one: files and the list of their digests."""
    (folder / "code").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "code" / "modeling.py").write_text("x = 1\n")
    (folder / DIGESTS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests(folder).items()))
    return folder


def test_a_version_comes_back_as_it_was_registered(uri: str, tmp_path: Path) -> None:
    folder = sealed(tmp_path / "model", b"one")
    version = registry.register(uri, "digits", folder, None, {"run": "ada.digits"})
    registry.move_alias(uri, "digits", version.version, by="ada", reason="first")
    found = registry.resolve(uri, "digits")
    assert (found.name, found.version, found.run_id, found.tags["run"]) == ("digits", 1, None, "ada.digits")
    fetched = registry.fetch(uri, found, tmp_path / "cache" / "digits")
    assert digests(fetched) == digests(folder)
    assert registry.fetch(uri, found, fetched) == fetched


def test_two_replicas_may_fetch_a_version_at_once(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sealed(tmp_path / "model", b"one")
    version = registry.register(uri, "digits", folder, None, {})
    both = threading.Barrier(2, timeout=30)
    # Called once a replica has found no folder.
    monkeypatch.setattr(registry, "probe", lambda uri: both.wait())
    to = tmp_path / "cache" / "digits"
    with ThreadPoolExecutor(2) as replicas:
        fetched = list(replicas.map(lambda _: registry.fetch(uri, version, to), range(2)))
    assert fetched == [to, to]
    assert digests(to) == digests(folder)
    assert [path.name for path in to.parent.iterdir()] == ["digits"]


def test_the_same_folder_is_registered_once(uri: str, tmp_path: Path) -> None:
    folder = sealed(tmp_path / "model", b"one")
    assert registry.register(uri, "digits", folder, None, {}) == registry.register(uri, "digits", folder, None, {})
    assert registry.register(uri, "digits", sealed(tmp_path / "other", b"two"), None, {}).version == 2


def test_files_that_were_changed_are_refused(uri: str, tmp_path: Path) -> None:
    version = registry.register(uri, "digits", sealed(tmp_path / "model", b"one"), None, {})
    fetched = registry.fetch(uri, version, tmp_path / "cache")
    (fetched / "model.safetensors").write_bytes(b"another")
    with pytest.raises(ConfigError, match=r"model\.safetensors is not as it was exported"):
        registry.fetch(uri, version, fetched)
    swapped = sealed(tmp_path / "swapped", b"another")
    with pytest.raises(ConfigError, match=r"digits/1 is not what was registered: its sha256\.SHA256SUMS differs"):
        registry.fetch(uri, version, swapped)


def test_a_model_that_took_the_name_and_number_of_another_is_fetched_beside_it(
    uri: str, home: Path, tmp_path: Path
) -> None:
    before, after = (sealed(tmp_path / name, name.encode()) for name in ("before", "after"))
    registry.register(uri, "digits", before, None, {})
    first, _ = locate("digits/1", uri, None)
    assert digests(first.fetch()) == digests(before)
    connect(uri).delete_registered_model("digits")
    registry.register(uri, "digits", after, None, {})
    second, _ = locate("digits/1", uri, None)
    assert digests(second.fetch()) == digests(after)
    with pytest.raises(ConfigError, match="digits/1 was removed, and another model registered in its place"):
        first.fetch()


def test_references_that_mean_nothing_say_what_there_is(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model 'digits' is not registered at sqlite:.*; registered there: none yet"):
        registry.resolve(uri, "digits")
    registry.register(uri, "digits", sealed(tmp_path / "model", b"one"), None, {})
    for reference, message in {
        "digit": "model 'digit' is not registered at sqlite:.*; registered there: digits",
        "digits": "model 'digits' has no alias 'champion'; it has none",
        "digits/7": "model 'digits' has no version 7; it has 1",
        "digits/latest": "is not of the form NAME, NAME/VERSION or NAME@ALIAS",
    }.items():
        with pytest.raises(ConfigError, match=message):
            registry.resolve(uri, reference)
    assert registry.resolve(uri, "digits/1").version == 1


def test_every_move_of_the_champion_is_recorded_and_can_be_undone(uri: str, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        version = registry.register(uri, "digits", sealed(tmp_path / str(number), bytes([number])), None, {})
        registry.move_alias(uri, "digits", version.version, by="ada", reason=f"promoted {number}")
    assert registry.rollback(uri, "digits", "eve", "too slow").version == 2
    assert registry.rollback(uri, "digits", "eve", "slower still").version == 1
    assert registry.resolve(uri, "digits@champion").version == 1
    with pytest.raises(ConfigError, match="no version that was champion before"):
        registry.rollback(uri, "digits", "eve", "again")
    moves = registry.history(uri, "digits")
    assert [(move.before, move.version) for move in moves] == [(None, 1), (1, 2), (2, 3), (3, 2), (2, 1)]
    assert [move.by for move in moves] == ["ada"] * 3 + ["eve"] * 2
    assert moves[3].reason == "too slow"
    registry.move_alias(uri, "digits", 3, by="ada", reason="faster now")
    assert registry.rollback(uri, "digits", "eve", "no").version == 1


def test_a_record_of_a_move_may_say_more_than_is_known_here() -> None:
    record = {"version": 2, "before": 1, "by": "ada", "reason": "faster", "time": 0.0, "alias": "champion"}
    assert registry._read(json.dumps(record)) == registry.Move(2, 1, "ada", "faster", 0.0)


def test_an_alias_that_was_moved_by_other_means_goes_back_to_where_it_was(uri: str, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        registry.register(uri, "digits", sealed(tmp_path / str(number), bytes([number])), None, {})
    with pytest.raises(ConfigError, match="model 'digits' has no champion, so there is none to move back"):
        registry.rollback(uri, "digits", "eve", "")
    registry.move_alias(uri, "digits", 1, by="ada", reason="")
    client = connect(uri)
    client.set_registered_model_alias("digits", "champion", "3")
    assert registry.rollback(uri, "digits", "eve", "").version == 1
    client.set_registered_model_alias("digits", "champion", "3")
    registry.move_alias(uri, "digits", 2, by="ada", reason="")
    assert [registry.rollback(uri, "digits", "eve", "").version for _ in range(2)] == [3, 1]
    client.delete_registered_model_alias("digits", "champion")
    with pytest.raises(ConfigError, match="has no champion"):
        registry.rollback(uri, "digits", "eve", "")


def test_a_move_that_was_cut_short_and_done_again_counts_once(uri: str, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        registry.register(uri, "digits", sealed(tmp_path / str(number), bytes([number])), None, {})
        registry.move_alias(uri, "digits", number, by="ada", reason="")
    client = connect(uri)
    client.set_registered_model_alias("digits", "champion", "2")
    registry.move_alias(uri, "digits", 3, by="ada", reason="again")
    assert registry.rollback(uri, "digits", "eve", "").version == 2
    # Its record was written, and the alias was not moved.
    client.set_registered_model_alias("digits", "champion", "3")
    assert registry.rollback(uri, "digits", "eve", "again").version == 2
    assert registry.rollback(uri, "digits", "eve", "").version == 1


def test_a_rollback_never_goes_to_a_version_that_no_alias_ever_was_on(uri: str, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        registry.register(uri, "digits", sealed(tmp_path / str(number), bytes([number])), None, {})
    client = connect(uri)
    registry.move_alias(uri, "digits", 1, by="ada", reason="")
    # Cut short: the record of the move is there, and the alias is where it was.
    registry.move_alias(uri, "digits", 2, by="ada", reason="")
    client.set_registered_model_alias("digits", "champion", "1")
    with pytest.raises(ConfigError, match="no version that was champion before"):
        registry.rollback(uri, "digits", "eve", "")
    registry.move_alias(uri, "digits", 3, by="ada", reason="")
    assert registry.rollback(uri, "digits", "eve", "").version == 1
    with pytest.raises(ConfigError, match="no version that was champion before"):
        registry.rollback(uri, "digits", "eve", "")


@pytest.mark.parametrize(("theirs", "force"), [(0.99, False), (0.99, True), (0.2, False)])
def test_a_model_that_was_promoted_meanwhile_is_compared_with_too(
    theirs: float, force: bool, uri: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scoring, measuring and uploading take minutes."""
    whole = config()
    run = runs.create("mine", whole, Identity(user="ada"))
    run.update(status="FINISHED", tracking_uri=uri)
    test = result(run.folder, None)
    write_result(run.result, test)
    export_model(run.model)

    def promoted(folder: str, quality: float) -> None:
        tags = {**promote._basis(whole, test, ""), "curve": json.dumps({"4": quality, "16": quality})}
        version = registry.register(uri, "digits", sealed(tmp_path / folder, folder.encode()), None, tags)
        registry.move_alias(uri, "digits", version.version, by="eve", reason="")

    def measured(*_: object) -> promote.Latency:
        promoted("theirs", theirs)
        return promote.Latency({4: 1.0, 16: 2.0}, 1, "this one")

    promoted("before", 0.1)
    monkeypatch.setattr(promote, "latency", measured)
    if theirs > 0.9 and not force:
        with pytest.raises(ConfigError, match=r"AUTC 0\.6300 on test and the champion digits/2 0\.9900"):
            promote.promote("mine")
        assert registry.resolve(uri, "digits").version == 2
        return
    found = promote.promote("mine", force=force)
    assert (found.before, found.version, found.better) == (2, 3, not force)
    assert registry.resolve(uri, "digits").version == 3
    card = (registry.fetch(uri, registry.resolve(uri, "digits"), tmp_path / "fetched") / "README.md").read_text()
    # The curve on test, as the ladder and the version have it.
    assert "| 4 | 0.300 |" in card


def test_every_model_of_a_large_registry_is_known(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(uri)
    for number in range(5):
        client.create_registered_model(f"model-{number}")
    registry.register(uri, "model-4", sealed(tmp_path / "model", b"one"), None, {})
    registry.move_alias(uri, "model-4", 1, by="ada", reason="")
    monkeypatch.setattr(registry, "_PAGE", 2)
    assert registry.names(uri) == [f"model-{number}" for number in range(5)]
    assert registry.champions(uri) == ["model-4"]


def test_a_model_scored_on_another_number_of_examples_does_not_take_the_champions_place(
    uri: str, tmp_path: Path
) -> None:
    def scored(n: int) -> RunResult:
        return result(tmp_path, None, curve={k: replace(point, n=n) for k, point in CURVE.items()})

    def basis(n: int, tokens: int = 4) -> dict[str, str]:
        evaluation = config().evaluation.model_copy(update={"max_new_tokens": tokens})
        return promote._basis(config(evaluation=evaluation), scored(n), "b" * 64)

    def better(n: int, tokens: int = 4, force: bool = False) -> bool:
        champion = promote.standing(uri, "digits")
        return promote._is_better(uri, "digits", scored(n), basis(n, tokens), champion, force)

    curve = {"curve": '{"4": 0.1, "16": 0.2}'}
    registry.register(uri, "digits", sealed(tmp_path / "1", b"one"), None, {**basis(4096), **curve})
    registry.move_alias(uri, "digits", 1, by="ada", reason="")
    assert better(4096)
    assert not better(8, force=True)
    with pytest.raises(ConfigError, match=r"the champion digits/1, which was scored otherwise \(n 8 against 4096\)"):
        better(8)
    with pytest.raises(ConfigError, match=r"\(max_new_tokens 16 against 4\)"):
        better(4096, tokens=16)
    before = {tag: basis(4096)[tag] for tag in ("metric", "data")}
    registry.register(uri, "digits", sealed(tmp_path / "2", b"two"), None, {**before, **curve})
    registry.move_alias(uri, "digits", 2, by="ada", reason="")
    with pytest.raises(ConfigError, match=r"\(n 4096 against not known, max_new_tokens 4 against not known\)"):
        better(4096)

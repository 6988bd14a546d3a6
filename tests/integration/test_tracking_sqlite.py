"""Tracking on a real SQLite store: one run per logical run, params and tags, what `finish` leaves behind."""

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokendial import model_folder
from tokendial.contracts import TrackingConfig
from tokendial.curve import ItemScores, regret, served_matrix
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed
from tokendial.results import ExampleAnswers
from tokendial.runs import VOLATILE
from tokendial.tracking import golden, unsettled
from tokendial.tracking.finish import finish, settle
from tokendial.tracking.golden import golden_examples
from tokendial.tracking.opening import MAX_VALUE_CHARS, ensure_open, flatten, open_run
from tokendial.tracking.registry import ModelVersion, register
from tokendial.tracking.server import connect
from tokendial.tracking.system import SystemMonitor
from tokendial.tracking.view import TAG
from tokendial.tracking.writer import MetricWriter
from tracking_samples import DIGESTS, IDENTITY, config, fresh_store, result

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "ada.digits.tiny.1234"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def uri(run_dir: Path) -> str:
    return fresh_store(run_dir.parent)


def history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in connect(uri).get_metric_history(run_id, name)]


def write(uri: str, run_id: str | None, run_dir: Path, steps: range) -> MetricWriter:
    writer = MetricWriter(uri, run_id, run_dir / "tracking", interval_s=0.05)
    for step in steps:
        writer.log(step, {"train/loss": 1 / (step + 1), "train/count": 4})
    return writer


def test_writers_that_find_a_server_back_at_the_same_time_open_one_run(uri: str, run_dir: Path):
    assert open_run(config(), IDENTITY, "http://127.0.0.1:1", run_dir) is None
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: ensure_open(connect(uri), uri, run_dir / "tracking"), range(4)))
    assert len(set(opened)) == 1
    client = connect(uri)
    assert len(client.search_runs([client.get_run(opened[0]).info.experiment_id])) == 1


def test_an_experiment_gets_its_view_once_and_keeps_what_somebody_makes_of_it(uri: str, run_dir: Path):
    client = connect(uri)
    first = open_run(config(), IDENTITY, uri, run_dir)
    assert first is not None
    number = client.get_run(first).info.experiment_id
    state = json.loads(client.get_experiment(number).tags[TAG])
    assert state["selectedColumns"][:3] == ["metrics.`autc`", "metrics.`quality/k4`", "metrics.`quality/k16`"]
    client.set_experiment_tag(number, TAG, "{}")
    (run_dir.parent / "second").mkdir()
    open_run(config(), IDENTITY, uri, run_dir.parent / "second")
    assert client.get_experiment(number).tags[TAG] == "{}"


def test_a_run_holds_who_what_and_from_which_source(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir, digests=DIGESTS)
    assert run_id is not None
    run = connect(uri).get_run(run_id)
    assert run.info.run_name == run_dir.name
    assert run.info.status == "RUNNING"
    assert run.data.params["schedule.counts"] == "[4, 16, 144]"
    assert run.data.params["seed"] == "0"
    assert not [key for key in run.data.params if key.split(".")[0] in VOLATILE]
    expected = {"mlflow.user": "ada", "mlflow.source.git.commit": "c0ffee", "uncommitted_changes": "true"}
    assert expected.items() <= run.data.tags.items()
    assert run.data.tags["config.workers"] == "1"
    assert run.data.tags["package.mlflow"].startswith("3.")
    assert run.inputs is not None
    datasets = {entry.dataset.name: entry.dataset for entry in run.inputs.dataset_inputs}
    assert sorted(datasets) == ["digits.test", "digits.train"]
    assert json.loads(datasets["digits.train"].profile or "") == {"sha256": "a" * 64}
    assert {item.path for item in connect(uri).list_artifacts(run_id)} == {"config.json", "uncommitted.diff"}


def test_artifacts_lie_beside_the_database(uri: str, run_dir: Path):
    open_run(config(), IDENTITY, uri, run_dir)
    assert list((run_dir.parent / "mlartifacts" / "digits-tiny").glob("*/artifacts/config.json"))


def test_resuming_continues_the_same_run_with_other_workers(uri: str, run_dir: Path):
    first = open_run(config(), IDENTITY, uri, run_dir)
    assert first is not None
    finish(uri, run_dir, result(run_dir, first, status="KILLED", curve={}, autc=None, groups={}, model_dir=None))
    assert connect(uri).get_run(first).info.status == "KILLED"
    second = open_run(config(workers=2), IDENTITY, uri, run_dir)
    assert second == first
    run = connect(uri).get_run(first)
    assert run.info.status == "RUNNING"
    assert run.data.tags["config.workers"] == "2"


def test_a_param_that_changed_keeps_its_value_and_gains_a_tag(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir)
    assert open_run(config(global_batch=64), IDENTITY, uri, run_dir) == run_id
    run = connect(uri).get_run(run_id or "")
    assert run.data.params["global_batch"] == "32"
    assert run.data.tags["config.global_batch"] == "64"


def test_a_run_whose_answer_was_lost_is_found_by_its_key(uri: str, run_dir: Path):
    first = open_run(config(), IDENTITY, uri, run_dir)
    (run_dir / "tracking" / "link.json").unlink()
    assert open_run(config(), IDENTITY, uri, run_dir) == first


def test_a_deleted_run_is_not_resurrected(uri: str, run_dir: Path):
    first = open_run(config(), IDENTITY, uri, run_dir)
    write(uri, first, run_dir, range(5)).close(timeout_s=120)
    connect(uri).delete_run(first or "")
    second = open_run(config(), IDENTITY, uri, run_dir)
    assert second is not None
    assert second != first
    write(uri, second, run_dir, range(5, 8)).close(timeout_s=120)
    assert [step for step, _ in history(uri, second, "train/loss")] == list(range(8))


def test_a_forked_run_names_the_run_it_is_from(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir, forked_from="ada.digits.0")
    assert connect(uri).get_run(run_id or "").data.tags["forked_from"] == "ada.digits.0"


def test_long_values_are_shortened_and_kept_whole_in_the_artifact(uri: str, run_dir: Path):
    data = config().data.model_copy(update={"path": "/data/" + "x" * 20000})
    run_id = open_run(config(data=data), IDENTITY, uri, run_dir)
    tags = connect(uri).get_run(run_id or "").data.tags
    assert len(tags["config.data.path"]) == MAX_VALUE_CHARS
    assert tags["config.data.path"].endswith("(20006 characters)")
    whole = connect(uri).download_artifacts(run_id or "", "config.json", str(run_dir))
    assert len(json.loads(Path(whole).read_text())["data"]["path"]) == 20006


def test_flattened_keys_are_dotted_paths():
    assert flatten({"a": {"b": [1, 2], "c": {}}, "d": "text", "e": None}) == {
        "a.b": "[1, 2]",
        "a.c": "{}",
        "d": "text",
        "e": "null",
    }


def test_every_point_arrives_once_and_the_caller_waits_microseconds(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir)
    writer = write(uri, run_id, run_dir, range(2500))
    assert writer.close(timeout_s=120)
    assert [step for step, _ in history(uri, run_id or "", "train/loss")] == list(range(2500))
    assert writer.num_logged == 5000
    assert writer.dropped == 0
    assert writer.seconds_on_caller / 2500 < 0.001


def test_a_resumed_run_writes_each_step_once(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir)
    write(uri, run_id, run_dir, range(20)).close(timeout_s=120)
    resumed = write(uri, run_id, run_dir, range(10, 30))
    assert resumed.close(timeout_s=120)
    assert resumed.journal.repeated == 20
    assert [step for step, _ in history(uri, run_id or "", "train/loss")] == list(range(30))


def test_a_resumed_run_on_a_machine_without_the_journal_writes_each_step_once(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir)
    write(uri, run_id, run_dir, range(20)).close(timeout_s=120)
    elsewhere = run_dir.parent / "elsewhere"
    write(uri, run_id, elsewhere, range(10, 30)).close(timeout_s=120)
    assert [step for step, _ in history(uri, run_id or "", "train/loss")] == list(range(30))


def test_values_that_are_not_finite_are_logged(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir)
    writer = MetricWriter(uri, run_id, run_dir / "tracking", interval_s=0.05)
    writer.log(1, {"train/loss": float("nan"), "train/grad_norm": float("inf")})
    assert writer.close(timeout_s=120)
    assert history(uri, run_id or "", "train/loss")[0][1] != history(uri, run_id or "", "train/loss")[0][1]
    assert history(uri, run_id or "", "train/grad_norm")[0][1] > 1e300


def test_a_name_outside_the_scheme_is_refused_at_once(uri: str, run_dir: Path):
    writer = MetricWriter(uri, "0" * 32, run_dir / "tracking")
    with pytest.raises(ValueError, match="'Train loss' does not fit the naming scheme"):
        writer.log(0, {"Train loss": 1.0})
    writer.close()


def test_finish_leaves_curve_tables_figures_model_and_status(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir) or ""
    figure = run_dir / "curve.png"
    figure.write_bytes(b"png")
    examples = [ExampleAnswers(b"\x89PNG", "which digit?", "3", {4: "1", 16: "3"}, {4: 0.0, 16: 1.0})]
    assert finish(uri, run_dir, result(run_dir, run_id), {"curve": figure}, examples)
    client = connect(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert history(uri, run_id, "curve/quality") == [(4, 0.3), (16, 0.96)]
    assert history(uri, run_id, "quality/k16") == [(10, 0.96)]
    assert {
        "autc",
        "ledger/visual_tokens/k4",
        "quality_read_it/k4",
        "measure_token_f1/k4",
        "ledger/money",
    } <= run.data.metrics.keys()
    paths = {item.path for folder in ("", "figures", "tables") for item in client.list_artifacts(run_id, folder)}
    assert {"figures/curve.png", "tables/curve.json", "tables/examples.json", "result.json"} <= paths
    assert "| 16 | 0.960 |" in run.data.tags["mlflow.note.content"]
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (model.name, str(model.status), model.source_run_id) == ("digits", "READY", run_id)
    assert {metric.key: metric.value for metric in model.metrics or []}["quality/k16"] == 0.96
    assert [item.path for item in client.list_logged_model_artifacts(model.model_id)] == ["config.json"]
    assert run.outputs is not None
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]


def registered(uri: str, run_dir: Path, examples: Sequence[ExampleAnswers]) -> str:
    """A version of `digits` whose run ended with a table of examples, or with none; the run's id."""
    run_id = open_run(config(), IDENTITY, uri, run_dir) or ""
    assert finish(uri, run_dir, result(run_dir, run_id), examples=examples)
    folder = run_dir / "sealed"
    folder.mkdir()
    (folder / model_folder.DIGESTS).write_text("")
    assert register(uri, "digits", folder, run_id, {}).version == 1
    return run_id


def test_golden_prompts_of_a_registered_version_are_as_they_were_measured(uri: str, run_dir: Path):
    examples = [
        ExampleAnswers(b"\x89PNG", "what is it?", "a red car", {4: "", 16: "a car"}, {4: 0.0, 16: 0.6}),
        ExampleAnswers(b"\x89PNG2", "and this?", "a dog", {16: "a dog"}, {16: 1.0}),
    ]
    run_id = registered(uri, run_dir, examples)
    assert golden_examples(uri, "digits/1") == examples
    cells = [[{"filepath": f"tables/images/{index}.png"}, "q", "t", "✗ a", "✓ a"] for index in range(2)]
    older = {"columns": ["image", "question", "target", "4 tokens", "16 tokens"], "data": cells}
    connect(uri).log_text(run_id, json.dumps(older), "tables/examples.json")
    found = golden_examples(uri, "digits/1")
    assert [(each.answers, each.quality) for each in found] == [({4: "a", 16: "a"}, {4: 0.0, 16: 1.0})] * 2
    connect(uri).log_text(run_id, "{", "tables/examples.json")
    with pytest.raises(ConfigError, match="digits/1 cannot be held against its run, train it again"):
        golden_examples(uri, "digits/1")


def test_a_version_without_a_table_or_a_run_has_no_golden_prompts(
    uri: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    registered(uri, run_dir, [])
    assert golden_examples(uri, "digits/1") == []
    for run_id in (None, "0" * 32):
        monkeypatch.setattr(golden, "resolve", lambda *_, id=run_id: ModelVersion("digits", 1, id, {}))
        assert golden_examples(uri, "digits/1") == []


def test_golden_prompts_that_are_away_for_a_moment_are_not_taken_for_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(golden, "resolve", lambda *_: ModelVersion("digits", 1, "0" * 32, {}))
    with pytest.raises(WorkFailed, match="golden prompts of digits/1 are not to be had now"):
        golden_examples("http://127.0.0.1:9", "digits/1")


def test_finishing_twice_adds_nothing(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir) or ""
    for _ in range(2):
        assert finish(uri, run_dir, result(run_dir, run_id))
    assert settle(uri, run_dir)
    assert not unsettled(run_dir / "tracking")
    client = connect(uri)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert history(uri, run_id, "curve/quality") == [(4, 0.3), (16, 0.96)]
    assert len(history(uri, run_id, "ledger/flops")) == 1
    assert len(client.search_logged_models([client.get_run(run_id).info.experiment_id])) == 1


def test_a_repeat_after_a_lost_answer_adds_nothing(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir) or ""
    assert finish(uri, run_dir, result(run_dir, run_id))
    for tag in ("tokendial.curve", "tokendial.ledger"):
        connect(uri).delete_tag(run_id, tag)
    (run_dir / "tracking" / "finished.json").rename(run_dir / "tracking" / "finish.json")
    assert settle(uri, run_dir)
    assert history(uri, run_id, "curve/quality") == [(4, 0.3), (16, 0.96)]
    assert len(history(uri, run_id, "ledger/flops")) == 1


def test_twins_trained_later_add_regret_and_matrix(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir) or ""
    first = result(run_dir, run_id)
    assert finish(uri, run_dir, first)
    answers = {seed: ItemScores(["a", "b"], {4: [0.0, 1.0], 16: [1.0, 1.0]}) for seed in (0, 1)}
    matrix = served_matrix(answers, {4: answers})
    later = first.model_copy(update={"regret": regret(answers, {4: answers}), "matrix": matrix, "twins": "steps"})
    assert finish(uri, run_dir, later)
    assert history(uri, run_id, "regret/k4") == [(4, 0.0)]
    assert history(uri, run_id, "curve/quality") == [(4, 0.3), (16, 0.96)]
    assert "tables/matrix.json" in {item.path for item in connect(uri).list_artifacts(run_id, "tables")}
    assert connect(uri).get_run(run_id).info.status == "FINISHED"


def test_a_failed_run_keeps_its_error(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir) or ""
    bare = {"curve": {}, "autc": None, "groups": {}, "model_dir": None}
    assert finish(uri, run_dir, result(run_dir, run_id, status="FAILED", error="out of memory", **bare))
    run = connect(uri).get_run(run_id)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "out of memory")


def test_a_run_that_goes_on_is_not_finished(uri: str, run_dir: Path):
    with pytest.raises(ValueError, match="terminal status"):
        finish(uri, run_dir, result(run_dir, None, status="RUNNING"))


def test_system_metrics_carry_the_node_and_continue_on_resume(uri: str, run_dir: Path):
    run_id = open_run(config(), IDENTITY, uri, run_dir) or ""
    for _ in range(2):
        assert SystemMonitor(uri, run_id, run_dir / "tracking", node="node 1", interval_s=30).stop(timeout_s=120)
    steps = [step for step, _ in history(uri, run_id, "system/node-1/cpu_utilization_percentage")]
    assert steps == [0, 1]


def test_no_secret_of_the_address_is_stored_or_said(run_dir: Path, caplog: pytest.LogCaptureFixture):
    address = "http://ada:hunter2@127.0.0.1:9/"
    caplog.set_level(logging.DEBUG)
    changed = config(tracking=TrackingConfig(uri=address))
    assert open_run(changed, IDENTITY, address, run_dir) is None
    writer = write(address, None, run_dir, range(3))
    assert not writer.close()
    assert not finish(address, run_dir, result(run_dir, None))
    kept = b"".join(path.read_bytes() for path in run_dir.rglob("*") if path.is_file())
    assert b"hunter2" not in kept
    assert "hunter2" not in caplog.text
    assert "127.0.0.1:9" in caplog.text

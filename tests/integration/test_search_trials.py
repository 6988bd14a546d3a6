"""Whole searches on the tests' cluster: equal trials, explained failures, driver killed and continued, promoted."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from run_lab import cluster_is_free, command, here, kill, say, until
from search_lab import MARKER, QUICK, SABOTAGED, TRIALS, events, numbers
from tokendial import api, runs
from tokendial.experiments import ConfigError
from tokendial.model_folder import check_digests
from tokendial.resolve import resolve
from tokendial.search import speed
from tokendial.tracking import registry
from tokendial.tracking.golden import golden_examples

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

BASE = ("digits.tiny", *QUICK)
GRID = (*BASE, "schedule=tokenflex,uniform", "seed=0,1")
# With an example, which an endpoint asks before it serves what is promoted.
SHOWN = (*(line for line in BASE if "table_examples" not in line), "evaluation.table_examples=1")
PAIR = (*SHOWN, "schedule=tokenflex,uniform", "seed=1")


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(ray_cluster: str) -> Iterator[None]:
    yield
    until("free CPUs", cluster_is_free)


def test_a_grid_is_trained_compared_reported_and_promoted(home: Path, ray_cluster: str) -> None:
    result = api.search(PAIR[0], PAIR[1:], name="it")
    assert [row.outcome.status for row in result.trials] == ["FINISHED"] * 2
    assert [group.seeds for group in result.groups] == [(1,), (1,)]
    assert len(list(home.glob("it.tower-*"))) == 1, "trials of one seed share its tower"
    for row in result.trials:
        assert runs.find(row.run).read_result().split == "validation"
    page = (home / "it" / "report.html").read_text()
    assert all(part in page for part in ("Groups over seeds", "Pareto front", "Trials", "schedule=uniform"))
    assert "http://" not in page.split("<script>")[0]

    # The same command prints what is there, and so does the report.
    again = say("search", *PAIR, "--name", "it", "--json", home=home)
    assert again.code == 0, again.err
    assert again.document == json.loads(result.model_dump_json())
    assert say("report", "it", "--json", home=home).document == again.document
    assert len(events(home, "it")) == 5
    changed = say("search", *SHOWN, "schedule=tokenflex,m3", "seed=1", "--name", "it", home=home)
    assert (changed.code, "search 'it' is another one (space:" in changed.err) == (2, True)

    _check_tracking(home)
    _check_promotion(home)


def test_the_speed_of_a_trial_is_probed_by_a_worker(ray_cluster: str) -> None:
    assert speed.measured_speed(resolve("digits.tiny", QUICK)) > 1e6
    with pytest.raises(ConfigError, match="nowhere"):
        speed.measured_speed(resolve("digits.tiny", (*QUICK, "data.path=/nowhere")))


def _check_tracking(home: Path) -> None:
    """One parent with two children, all in a terminal state."""
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    everything = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parent = next(run for run in everything if run.info.run_name == "it")
    children = [run for run in everything if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name or "" for run in children) == [f"it.{number:03d}" for number in range(2)]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {"report.html", "result.json", "figures"} <= {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert parent.data.params["algorithm"] == "grid"
    assert len(client.get_metric_history(parent.info.run_id, "search/autc")) == 2


def _check_promotion(home: Path) -> None:
    assert api.promote("it", dry_run=True).version is None
    refused = say("promote", "it", "--model", "no name", home=home)
    assert (refused.code, "model name 'no name' is not admissible" in refused.err) == (2, True)
    uri = f"sqlite:///{home}/mlflow.db"
    assert registry.names(uri) == []
    first = api.promote("it", trial=0)
    assert (first.version, first.before) == (1, None)
    assert set(first.latency.ms) == {4}
    again = here("promote", "it", "--trial", "0", home=home)
    assert again.code == 0, again.err
    assert "version 1 is the champion of digits already; nothing was moved" in again.out
    assert len(registry.history(uri, "digits")) == 1
    version = registry.resolve(uri, "digits")
    assert version.tags["run"] == "it.000"
    assert [set(example.answers) for example in golden_examples(uri, "digits/1")] == [{4}]
    folder = registry.fetch(uri, version, home / "fetched")
    check_digests(folder)
    ladder = json.loads((folder / "ladder.json").read_text())
    assert (ladder["split"], ladder["dataset"]["workload"]) == ("test", "digits")
    assert ladder["rows"][0]["latency_ms"] > 0

    # A worse one than the champion is refused. These models know nothing, so the champion is made better by hand.
    MlflowClient(uri, uri).set_model_version_tag("digits", "1", "curve", '{"4": 0.9}')
    worse = here("promote", "it", "--trial", "1", home=home)
    assert worse.code == 2
    assert "the champion digits/1 0.9000 (4: " in worse.err
    forced = api.promote("it", trial=1, force=True)
    assert (forced.version, forced.before, forced.better) == (2, 1, False)
    back = say("promote", "digits", "--rollback", "--json", home=home)
    assert back.document == {"model": "digits", "before": 2, "version": 1}
    moves = registry.history(uri, "digits")
    assert [(move.before, move.version) for move in moves] == [(None, 1), (1, 2), (2, 1)]
    assert moves[1].reason.endswith("forced")


@pytest.mark.slow
def test_of_twenty_trials_five_are_sabotaged_and_fifteen_finish(
    home: Path, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARKER, str(tmp_path / "marker"))
    # No stage for the tower: what fails must be the trials, not the run that they would share.
    kept = [line for line in QUICK if not line.startswith("stages=")]
    settings = (*kept, 'stages=[{"name": "all", "share": 1}]', "workload=train_faults:faulty", "max_failures=0")
    result = api.search("digits.tiny", settings, algorithm="grid", space="search_lab:faulty", limit_s=120.0, name="it")
    states = {row.number: (row.outcome.status, row.outcome.cause or "") for row in result.trials}
    assert sorted(states) == list(range(TRIALS))
    words = {
        "fails": "on fire",
        "never a number": "is not finite",
        "killed": "died",
        "hangs": "no progress for 120 s",
        "fails again": "on fire",
    }
    for number, (status, cause) in sorted(states.items()):
        fault = SABOTAGED.get(number)
        assert status == ("FINISHED" if fault is None else "FAILED"), (number, status, cause)
        assert cause == "" if fault is None else words[fault] in cause, (number, cause)
    assert result.best is not None
    assert result.best not in SABOTAGED
    with pytest.raises(ConfigError, match="--trial 1 did not finish; finished trials are 0, 2"):
        api.promote("it", trial=1)


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_ends_with_every_trial_once(home: Path, ray_cluster: str) -> None:
    line = ("search", *GRID, "--name", "it")
    first = command(*line, home=home, address=ray_cluster)
    until("the second trial's end", lambda: len(numbers(home, "it", "done")) >= 2, first)
    kill(first, signal.SIGKILL)
    before = events(home, "it")
    second = say(*line, "--json", home=home, address=ray_cluster)
    assert second.code == 0, second.err
    assert events(home, "it")[: len(before)] == before
    assert numbers(home, "it", "asked") == [0, 1, 2, 3]
    assert sorted(numbers(home, "it", "done")) == [0, 1, 2, 3]
    assert {row["outcome"]["status"] for row in second.document["trials"]} == {"FINISHED"}
    assert [group["seeds"] for group in second.document["groups"]] == [[0, 1], [0, 1]]
    assert len(list(home.glob("it.tower-*"))) == 2, "each seed warms its tower once"


@pytest.mark.slow
@pytest.mark.parametrize("point", range(12))
def test_twelve_kill_points(point: int, home: Path, ray_cluster: str) -> None:
    """Killed at the n-th event of the ledger, or while the trial after it is under way."""
    line = ("search", *GRID, "--algorithm", "random", "--trials", "4", "--name", "it")
    target, later = divmod(point, 2)
    first = command(*line, home=home, address=ray_cluster)
    until(f"event {target}", lambda: len(events(home, "it")) > target, first)
    if later:
        until("a step of a trial", lambda: any(home.glob("it.0*/tracking/metrics.jsonl")), first)
    kill(first, signal.SIGKILL)
    before = events(home, "it")
    second = say(*line, "--json", home=home, address=ray_cluster)
    assert second.code == 0, second.err
    assert events(home, "it")[: len(before)] == before
    assert numbers(home, "it", "asked") == [0, 1, 2, 3]
    assert sorted(numbers(home, "it", "done")) == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_search_told_to_stop_ends_killed_and_leaves_nothing_running(
    number: signal.Signals, home: Path, ray_cluster: str
) -> None:
    process = command("search", *GRID, "--name", "it", home=home, address=ray_cluster)
    until("a trial under way", lambda: any(home.glob("it.0*/tracking/metrics.jsonl")), process)
    stopped = kill(process, number)
    assert stopped.code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number], stopped
    assert not (home / "it" / "lease.json").exists()
    record = json.loads(next(home.glob("it.0*/run.json")).read_text())
    assert record["status"] in ("KILLED", "FINISHED")


@pytest.mark.slow
def test_asha_stops_trials_early_and_counts_what_they_spent(home: Path, ray_cluster: str) -> None:
    settings = (*QUICK, "global_batch=4")
    result = api.search("digits.tiny", settings, algorithm="asha", trials=6, budget="6e9", per_trial=True, name="it")
    rungs = [line for line in events(home, "it") if line["event"] == "rung"]
    assert rungs
    for row in result.trials:
        assert row.outcome.status in ("FINISHED", "PRUNED")
        assert 0 < row.outcome.flops <= result.flops_per_trial
    assert result.accounting <= 0.05

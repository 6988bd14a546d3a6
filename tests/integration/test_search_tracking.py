"""A search at a server that is away while it is worked on: what it missed, it is told later."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tokendial import runs
from tokendial.bench.cluster import free_ports
from tokendial.curve import CurvePoint
from tokendial.identity import Identity
from tokendial.resolve import from_document
from tokendial.results import RunResult
from tokendial.search.desk import Desk
from tokendial.search.drive import plan_search
from tokendial.search.trials import Outcome
from tokendial.tracking import unsettled
from tokendial.tracking.finish import finish
from tokendial.tracking.logs import fetch_logs
from tokendial.tracking.opening import open_run
from tokendial.tracking.searches import SearchRecord
from tracking_samples import fresh_store

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def runs_by_name(uri: str) -> Mapping[str | None, Run]:
    client = MlflowClient(uri)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return {run.info.run_name: run for run in found}


def test_what_a_server_missed_of_a_search_it_is_told_later(home: Path, tmp_path: Path) -> None:
    plan = plan_search("digits.tiny", ("seed=0,1",), budget="2e9", per_trial=True, name="it")
    folder = home / "it"
    folder.mkdir(parents=True)
    desk = Desk(plan, folder)
    record = SearchRecord(f"http://127.0.0.1:{free_ports(1)[0]}", folder, plan)
    record.open()
    order = desk.ask()
    assert order is not None
    desk.tell(order.number, Outcome("FAILED", cause="on fire"))
    record.told(order.number, Outcome("FAILED", cause="on fire"))
    (folder / "logs").mkdir()
    (folder / "logs" / "driver.log").write_text("trials 1/2\n")
    record.close("FAILED", "on fire")
    assert unsettled(folder / "tracking")

    uri = fresh_store(tmp_path / "store")
    config = from_document(order.config)
    open_run(config, Identity(user="ada"), uri, runs.create(order.run, config, Identity(user="ada")).folder)
    SearchRecord(uri, folder, plan).settle()
    assert not unsettled(folder / "tracking")
    found = runs_by_name(uri)
    parent, child = found["it"], found["it.000"]
    assert (parent.info.status, parent.data.tags["error"]) == ("FAILED", "on fire")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.info.status, child.data.tags["search.cause"]) == ("FAILED", "on fire")
    assert fetch_logs(uri, "it") == {"driver": "trials 1/2\n"}


def test_trials_that_ended_while_the_server_was_away_are_told_whole(home: Path, tmp_path: Path) -> None:
    """The first was never opened there; of both the parent knows the worth."""
    plan = plan_search("digits.tiny", ("seed=0,1",), budget="2e9", per_trial=True, name="it")
    folder, away = home / "it", f"http://127.0.0.1:{free_ports(1)[0]}"
    folder.mkdir(parents=True)
    desk, record = Desk(plan, folder), SearchRecord(away, folder, plan)
    record.open()
    uri = fresh_store(tmp_path / "store")
    for worth in (0.4, 0.2):
        order = desk.ask()
        assert order is not None
        config = from_document(order.config)
        run = runs.create(order.run, config, Identity(user="ada"))
        open_run(config, Identity(user="ada"), away, run.folder)
        run.update(status="FINISHED", tracking_uri=uri)
        curve = {4: CurvePoint(worth, (worth, worth), 3)}
        finish(away, run.folder, RunResult(run_id=None, name=run.name, status="FINISHED", curve=curve, autc=worth))
        desk.tell(order.number, Outcome("FINISHED", values={"autc": worth}))
        record.told(order.number, Outcome("FINISHED", values={"autc": worth}))
    record.close("FINISHED", None)

    for _ in range(2):
        # Also where it was told twice, as after a kill.
        SearchRecord(uri, folder, plan).close("FINISHED", None)
    assert not unsettled(folder / "tracking")
    found, client = runs_by_name(uri), MlflowClient(uri)
    for name, worth in (("it.000", 0.4), ("it.001", 0.2)):
        child = found[name]
        assert child.data.tags["mlflow.parentRunId"] == found["it"].info.run_id
        assert (child.info.status, child.data.metrics["autc"]) == ("FINISHED", worth)
        assert runs.find(name).record.run_id == child.info.run_id
    parent = found["it"].info.run_id
    rows = {
        metric: [(row.step, row.value) for row in client.get_metric_history(parent, f"search/{metric}")]
        for metric in ("autc", "best")
    }
    assert rows == {"autc": [(0, 0.4), (1, 0.2)], "best": [(0, 0.4), (1, 0.4)]}


def test_a_search_is_not_settled_while_a_trial_of_it_is_not(home: Path, tmp_path: Path) -> None:
    plan = plan_search("digits.tiny", ("seed=0,1",), budget="2e9", per_trial=True, name="it")
    folder, away = home / "it", f"http://127.0.0.1:{free_ports(1)[0]}"
    folder.mkdir(parents=True)
    desk = Desk(plan, folder)
    order = desk.ask()
    assert order is not None
    config = from_document(order.config)
    run = runs.create(order.run, config, Identity(user="ada"))
    open_run(config, Identity(user="ada"), away, run.folder)
    run.update(status="FAILED", tracking_uri=away)
    finish(away, run.folder, RunResult(run_id=None, name=run.name, status="FAILED", error="on fire"))
    desk.tell(order.number, Outcome("FAILED", cause="on fire"))
    record = SearchRecord(fresh_store(tmp_path / "store"), folder, plan)
    record.open()
    record.close("FAILED", "on fire")
    assert unsettled(folder / "tracking")


def test_no_secret_of_an_address_is_recorded(home: Path) -> None:
    uri = fresh_store(home)
    secret = f"tracking.uri={uri}?password=hunter2"
    plan = plan_search("digits.tiny", ("seed=0,1", secret), budget="2e9", per_trial=True, name="it")
    (home / "it").mkdir()
    SearchRecord(uri, home / "it", plan).open()
    assert "hunter2" not in (home / "it" / "tracking" / "opening.json").read_text()

"""Twins of a finished run: trained, scored and put into its regret and matrix; and ended where they are told to."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from run_lab import Place, cluster_is_free, command, folder_of, kill, say, step_reached, train, until
from tokendial import api, runs
from tokendial.experiments import ConfigError
from tokendial.identity import Identity
from tokendial.resolve import resolve
from tokendial.results import RunResult, read_result, write_result
from train_faults import fault

TWO_COUNTS = ("schedule.counts=[4,16]", "schedule.weights=[1,1]", "schedule.phases=[]", "evaluation.counts=[4,16]")
ONE_STAGE = 'stages=[{"name": "all", "share": 1}]'


def test_twins_fill_regret_and_matrix_and_last_stays_the_flexible_run(home: Path, place: Place) -> None:
    shutil.copytree(place.home, home)
    flexible = read_result(home / "first" / "result.json")
    stages: list[str] = []
    result = api.twins("last", "steps", (0,), progress=lambda latest: stages.append(latest["stage"]))
    assert any("twin@16 seed 0" in stage for stage in stages)
    assert (result.name, result.twins, set(result.regret)) == (flexible.name, "steps", {4, 16})
    assert result.matrix is not None
    assert (result.matrix.rows, result.matrix.counts) == (("4", "16", "flexible"), (1, 4, 16))
    assert {"matrix", "matrix (html)"} <= result.figures.keys()
    assert read_result(folder_of(result) / "result.json") == result
    twins = [run for run in runs.list_runs() if run.name != flexible.name]
    assert [run.record.twin_of for run in twins] == [flexible.name] * 2
    assert [run.read_result().steps for run in twins] == [flexible.steps] * 2
    assert sorted(run.read_result().trained_counts for run in twins) == [(4,), (16,)]
    assert runs.find("last").name == flexible.name
    assert api.twins(flexible.name, "steps", (0,)) == result
    until("free CPUs", cluster_is_free)


def test_twins_need_every_trained_count_to_have_been_scored(home: Path) -> None:
    run = runs.create("first", resolve("digits.tiny", ("evaluation.counts=[1,4,16]",)), Identity(user="ada"))
    finished = RunResult(run_id=None, name="first", status="FINISHED", seed=0, trained_counts=(4, 16, 144))
    write_result(run.result, finished)
    with pytest.raises(ConfigError, match=r"^run 'first' was trained at \[144\] but not scored there; "):
        api.twins("first", "steps", (0,))
    assert [path.name for path in home.iterdir()] == ["first"]


@pytest.mark.slow
def test_twins_told_to_stop_end_killed_and_pending_ones_are_not_begun(
    home: Path, tmp_path: Path, ray_cluster: str
) -> None:
    slow = fault(tmp_path / "marker", slow=[0.5])
    train(*TWO_COUNTS, ONE_STAGE, "budget.steps=8", "workers=2", *slow, name="it")
    process = command("eval", "it", "--twins", "steps", home=home, address=ray_cluster)
    until("a twin", lambda: [run for run in runs.list_runs() if step_reached(run.folder) and run.name != "it"], process)
    stopped = kill(process, signal.SIGTERM)
    assert stopped.code == 143, stopped
    assert stopped.err.splitlines() == ["tokendial: stopped; the same command continues the run"]
    until("free CPUs", cluster_is_free)
    assert [run.record.status for run in runs.list_runs() if run.name != "it"] == ["KILLED"]
    assert say("report", "last", home=home).code == 0

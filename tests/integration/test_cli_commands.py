"""The real commands on one finished run: what they print, write and refuse, and how they exit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from run_lab import RUN, Place, Said, here, say
from tokendial import api
from tokendial.curve import token_curve
from tokendial.dotted import keys
from tokendial.experiments import experiment, experiment_names
from tokendial.ledger import Ledger
from tokendial.resolve import resolve
from tokendial.results import RunResult, read_result
from tokendial.schedule import PRESETS
from tokendial.scores import Scores
from tokendial.train.driver import with_horizon
from train_lab import Lab, assert_bit_equal, final_weights


def test_training_prints_the_curve_and_what_to_do_next_and_nothing_else(place: Place) -> None:
    assert place.said.err == ""
    lines = place.said.out.splitlines()
    assert any(line.startswith("starting workers") for line in lines)
    assert any(line.startswith(("warm_tower", "all", "export", "score", "report")) for line in lines)
    assert "accuracy on test" in place.said.out
    label, program, *words = lines[-1].split()
    assert (label, Path(program).name) == ("next:", "tokendial")
    assert words == ["eval", "first", "--counts", "1,4,16"]
    assert program == "tokendial" or Path(program).is_file()
    assert "Loading weights" not in place.said.out
    assert "it/s" not in place.said.out


def test_results_have_one_shape_in_train_eval_and_report(place: Place) -> None:
    trained = one_line(place.say("train", *RUN, "--name", "first", "--json"))
    scored = one_line(place.say("eval", "first", "--json"))
    reported = one_line(place.say("report", "last", "--json"))
    assert trained.keys() == scored.keys() == reported.keys() == set(RunResult.model_fields)
    assert reported == trained
    for result in (trained, scored, reported):
        assert RunResult.model_validate(result).curve.keys() == {1, 4, 16}
    assert scored["curve"] == trained["curve"]
    for name in ("autc", "run_id", "steps", "flops", "seconds", "ledger"):
        assert scored[name] == trained[name], name
    assert {"quality", "ci", "n"} <= trained["curve"]["4"].keys()
    assert Path(trained["model_dir"]).is_dir()
    assert trained["ledger"]


def one_line(said: Said) -> dict[str, Any]:
    assert said.code == 0, said.err
    assert len(said.out.strip().splitlines()) == 1
    return said.document


def test_eval_scores_counts_never_trained_at_and_folders_that_were_copied(place: Place, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(place.run / "model", copy)
    arguments = ("--counts", "4,9,36", "--examples", "4", "--json")
    by_run, by_folder = (one_line(place.here("eval", model, *arguments)) for model in ("first", str(copy)))
    assert list(by_run["curve"]) == ["4", "9", "36"]
    assert by_run["curve"] == by_folder["curve"]
    assert by_folder["model_dir"] == str(copy)
    validation = one_line(place.here("eval", "first", "--split", "validation", "--examples", "4", "--json"))
    assert validation["split"] == "validation"
    many = "--examples 129 is not in 1 to 128, the size of split 'test'"
    refused(place.here("eval", "first", "--examples", "129"), many)


def test_a_resolved_configuration_reruns_exactly(place: Place, tmp_path: Path, worker_process: None) -> None:
    """In this process what was trained through Ray, from nothing but the configuration that the run left."""
    config = with_horizon(resolve(None, config_file=place.run / "config.json"))
    again, first = Lab(tmp_path / "again", config).work(), read_result(place.run / "result.json")
    assert_bit_equal(again.weights, final_weights(place.run))
    assert token_curve(Scores.read(again.folder / "scores.json").items).points == first.curve
    spent = Ledger.from_json(json.loads((again.folder / "ledger.json").read_text()))
    assert spent.total.flops == first.flops


def test_export_copies_a_folder_that_evaluates_and_refuses_what_is_in_the_way(place: Place, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    said = place.say("export", "first", "--to", str(target), "--json")
    assert said.document == {"model_dir": str(target)}
    assert {path.name for path in target.iterdir()} == {path.name for path in (place.run / "model").iterdir()}
    refused(place.say("export", "first", "--to", str(target)), f"--to {target} is not an empty folder")


def test_export_names_a_file_that_is_not_as_it_was_written(place: Place, tmp_path: Path) -> None:
    home = tmp_path / "runs"
    shutil.copytree(place.home, home)
    weights = home / "first" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)
    said = say("export", "first", "--to", str(tmp_path / "exported"), home=home)
    refused(said, f"{weights} is not as it was exported")
    assert not (tmp_path / "exported").exists()


def refused(said: Said, words: str) -> None:
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith(f"tokendial: {words}"), said.err
    assert len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "first", "--counts", "7"), "evaluation.counts"),
        (("eval", "first", "--split", "train"), "--split 'train' is not one of test, validation"),
        (("eval", "."), "run '.' is not under"),
        (("eval", "first", "--twins", "epochs"), "--twins 'epochs' is not one of steps, flops"),
        (("eval", "first", "--twins", "steps", "--counts", "4"), "--counts does not go with --twins"),
        (("eval", "first", "--seeds", "0,1"), "--seeds goes with --twins only"),
        (("train", "digits.tiny", "--from", "nobody"), "run 'nobody' is not under"),
        (("train", "digits.tiny", "--name", "../up"), "run name '../up' is not admissible"),
        (("train", *RUN, "seed=9", "--name", "first"), "run 'first' has another configuration (seed: 0 → 9)"),
        (("export", "nobody", "--to", "x"), "run 'nobody' is not under"),
        (("report", "first", "nobody"), "run 'nobody' is not under"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_refused_in_one_sentence(place: Place, arguments: Sequence[str], words: str) -> None:
    before = sorted(place.home.iterdir())
    refused(place.say(*arguments), words)
    assert sorted(place.home.iterdir()) == before


def test_the_list_has_a_line_for_each_experiment_and_schedule(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = here("train", "--list", home=home)
    assert said.code == 0, said.err
    firsts = [line.split()[0] for line in said.out.splitlines() if line.strip()]
    assert set(experiment_names()) <= set(firsts)
    assert set(PRESETS) <= set(firsts)
    for preset in PRESETS.values():
        assert preset.summary in said.out
    monkeypatch.setenv("TOKENDIAL_CLUSTER", "http://127.0.0.1:1")
    listed = here("train", "--list", "--json", home=home).document
    assert [row["experiment"] for row in listed["experiments"]] == list(experiment_names())
    assert [row["schedule"] for row in listed["schedules"]] == list(PRESETS)
    assert len([line for line in said.out.splitlines() if line.strip()]) == 2 + sum(map(len, listed.values()))


def test_help_of_an_experiment_has_every_key_with_its_type_default_and_meaning(home: Path) -> None:
    said = here("train", "digits", "--help", home=home)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    for key, (kind, default, meaning) in keys(experiment("digits")).items():
        line = next((line for line in lines if line.startswith(f"{key} ")), None)
        assert line is not None, key
        assert meaning, key
        for words in (meaning.split()[0], kind[:6], str(default)[:8].replace("None", "null")):
            assert words in line, (key, words)
    assert "--dry-run" in said.out


def test_a_model_that_does_not_fit_here_is_forecast_without_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokendial.train.memory.free_bytes", lambda device: 1 << 10)
    forecast = api.forecast(resolve("digits.tiny", ()))
    assert forecast["seconds_training"] is None
    assert "GiB are free here" in forecast["seconds_cover"]
    assert forecast["flops"] > 1e9


def test_a_dry_run_forecasts_and_writes_nothing(home: Path) -> None:
    said = say("train", *RUN, "--dry-run", "--json", home=home)
    assert said.code == 0, said.err
    forecast = said.document
    assert forecast["config"]["experiment"] == "digits.tiny"
    assert forecast["config"]["budget"]["horizon"] == forecast["steps"] == 12
    assert forecast["stages"] == {"warm_tower": 4, "all": 8}
    # A step may have several counts.
    per_count = forecast["steps_per_count"].values()
    assert max(per_count) <= 8 <= sum(per_count)
    assert forecast["flops"] > 1e9
    assert forecast["seconds_training"] > 0
    assert forecast["seconds_scoring"] > 0
    assert forecast["peak_bytes_per_worker"] > 100 << 20
    assert set(forecast["data_digests"]) == {"train", "validation", "test"}
    shown = here("train", *RUN, "--dry-run", home=home)
    assert shown.code == 0, shown.err
    assert '"horizon": 12' in shown.out
    assert "seconds_training" in shown.out
    assert not home.exists()


def test_a_forecast_prices_the_run_that_then_happens(place: Place) -> None:
    forecast = place.here("train", *RUN, "--dry-run", "--json").document
    result = json.loads((place.run / "result.json").read_text())
    assert forecast["flops"] == pytest.approx(result["flops"], rel=1e-9)
    assert forecast["steps"] == result["steps"]


def test_doctor_reports_each_check_and_exits_by_what_it_found(home: Path) -> None:
    said = say("doctor", "--json", home=home)
    found = said.document
    assert len(found) > 5
    assert all({"name", "status", "finding", "advice"} <= check.keys() for check in found)
    failed = [check for check in found if check["status"] == "fail"]
    assert said.code == (1 if failed else 0)


def test_a_broken_record_of_a_run_is_one_sentence(place: Place, tmp_path: Path) -> None:
    home = tmp_path / "runs"
    shutil.copytree(place.home, home)
    (home / "first" / "result.json").write_text("{")
    (home / "first" / "model" / "tokendial.json").write_text("{}")
    refused(say("report", "first", home=home), f"{home / 'first' / 'result.json'} is broken")
    refused(say("eval", str(home / "first" / "model"), home=home), f"{home / 'first'}")

"""`result.json` and the `--json` line are the same object, checked when it is read."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from report_samples import examples, result, with_twins
from tokendial.results import RunResult, read_examples, read_result, write_examples, write_result


def test_a_result_comes_back_from_its_file(tmp_path: Path):
    written = with_twins()
    write_result(tmp_path / "result.json", written)
    assert read_result(tmp_path / "result.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_the_line_is_one_json_object_with_counts_as_keys():
    line = result(None, 0).to_line()
    document = json.loads(line)
    assert "\n" not in line
    assert list(document)[:3] == ["run_id", "name", "status"]
    assert set(document["curve"]["4"]) == {"quality", "ci", "n"}
    assert document["ledger"]["total"]["visual_tokens"] == 164 * 16000


def test_a_failed_run_is_a_result_without_a_curve():
    failed = RunResult(run_id=None, name="x", status="FAILED", error="a worker ran out of memory")
    assert failed.spent is None
    assert json.loads(failed.to_line())["autc"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"autc": None}, "come together"),
        ({"autc": 0.1}, "is not the area under the curve"),
        ({"ledger": {"counts": {}}}, "not a ledger"),
        ({"status": "DONE"}, "FINISHED"),
        ({"unknown": 1}, "Extra inputs"),
        ({"curve": {"4": {"quality": 2, "ci": [0, 1], "n": 3}}}, "point at 4 is not one"),
        ({"curve": {"0": {"quality": 0.5, "ci": [0, 1], "n": 3}}}, "strictly increasing positive"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_damaged_result_is_refused(change: dict[str, object], message: str):
    document = {**json.loads(result(None, 0).to_line()), **change}
    with pytest.raises(ValidationError, match=message):
        RunResult.model_validate(document)


def test_examples_come_back_from_their_file(tmp_path: Path):
    rows = examples()
    write_examples(tmp_path / "examples.json", rows)
    assert read_examples(tmp_path / "examples.json") == rows

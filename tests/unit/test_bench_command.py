"""`tokendial bench`: its parts, its options, what it refuses, and that asking costs no heavy import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokendial import bench
from tokendial.bench import jobs, train
from tokendial.experiments import ConfigError


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tokendial", "bench", *arguments], capture_output=True, text=True, timeout=60
    )


def test_an_unknown_part_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'serving' is unknown; choose one of train, serve, search, jobs, kernels"):
        bench.run("serving", [])


def test_an_unknown_part_exits_2_with_a_sentence() -> None:
    done = command("serving")
    assert done.returncode == 2
    assert done.stderr.startswith("tokendial: bench part 'serving' is unknown")


def test_help_teaches_the_options() -> None:
    for part, words in {
        "train": ("--steps", "--only", "--out", "--experiment", "--quick", "--show", *train.PARTS),
        "jobs": ("--only", "--out", "--quick", "--show", *jobs.PARTS),
    }.items():
        done = command(part, "--help")
        assert done.returncode == 0, done.stderr
        assert [word for word in words if word not in done.stdout] == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "one,three"], "names 'three'; choose from one, two, saving, pooling, start"),
        (["--experiment", "digit"], "experiment 'digit' is unknown"),
        (["--steps", "1"], "--steps 1 is too few"),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        train.main(arguments)


def test_showing_a_file_without_rows_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no rows"):
        train.main(["--show", "--out", str(tmp_path / "none.json")])


def test_pooling_is_measured_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "train.json"
    assert train.main(["--only", "pooling", "--steps", "2", "--out", str(out)]) == 0
    ((_, parts),) = json.loads(out.read_text("utf-8")).items()
    assert all(row["value"] > 0 and len(row["samples"]["pool"]) == 2 for row in parts["pooling"]["rows"])
    assert train.main(["--show", "--out", str(out)]) == 0
    assert "| CPU pooling" in capsys.readouterr().out


def test_importing_the_bench_imports_nothing_heavy() -> None:
    program = (
        "import sys, tokendial.bench, tokendial.bench.train; print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr

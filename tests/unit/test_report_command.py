"""`tokendial report` as typed: several runs in one table and page, and what cannot be compared."""

from pathlib import Path

import pytest
import report_samples as samples
from tokendial import runs
from tokendial.cli import app
from tokendial.commands.search import print_search
from tokendial.curve import autc
from tokendial.identity import Identity
from tokendial.resolve import resolve
from tokendial.results import RunResult, write_result
from tokendial.scores import Scores
from tokendial.search.found import Group, SearchResult, TrialRow
from tokendial.search.trials import Outcome
from typer.testing import CliRunner, Result


def said(*words: str) -> Result:
    return CliRunner().invoke(app, ["report", *words])


def finished(result: RunResult) -> str:
    """A run of the runs folder with a result; returns its name."""
    run = runs.create(result.name, resolve("digits.tiny", machine_cpus=None), Identity(user="ada"))
    run.update(status="FINISHED")
    write_result(run.result, result)
    Scores("test", samples.scores(None, result.seed or 0), (), {}, {}).write(run.folder / "scores.json")
    return run.name


@pytest.fixture
def pair(home: Path) -> tuple[str, str]:
    """A flexible run under two seeds."""
    del home
    first, second = (finished(samples.result(None, seed)) for seed in (0, 1))
    return first, second


def test_several_runs_end_in_one_table_and_the_page(pair: tuple[str, str]) -> None:
    done = said(*pair)
    assert done.exit_code == 0, done.output
    assert done.stdout.index("Token curves") < done.stdout.index("comparison:")
    assert Path("".join(done.stdout.split("comparison:")[1].split())).is_file()


def test_one_run_says_where_its_figures_are(home: Path) -> None:
    figures = {"curve": str(home / "x" / "figures" / "curve.png")}
    run = finished(samples.result(None, 0).model_copy(update={"figures": figures}))
    assert f"curve:         {figures['curve']}" in said(run).stdout


def test_runs_elsewhere_are_compared_by_their_folders(
    pair: tuple[str, str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [str(home / name) for name in pair]
    monkeypatch.setenv("TOKENDIAL_HOME", str(tmp_path / "own"))
    # A run of the same name under the own runs folder is another one.
    finished(samples.result(None, 0))
    (tmp_path / "own" / pair[0] / "scores.json").write_text("{}")
    done = said(*folders)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "own" / "reports").iterdir())) == 1


def test_a_run_beside_itself_is_refused(pair: tuple[str, str]) -> None:
    done = said(pair[0], pair[0])
    assert (done.exit_code, done.stderr) == (
        2,
        f"tokendial: run {pair[0]!r} is given more than once; give each run once\n",
    )


def test_runs_of_different_grids_are_refused_in_one_sentence(home: Path) -> None:
    del home
    whole, part = samples.result(None, 0), samples.result(None, 1)
    curve = {count: point for count, point in part.curve.items() if count > 1}
    part = part.model_copy(update={"curve": curve, "autc": autc(curve)})
    done = said(finished(whole), finished(part))
    assert done.exit_code == 2
    assert done.stderr.startswith("tokendial: runs with different evaluation grids are not compared: [[1, 4, ")


def searched(home: Path, best: int | None, cause: str = "on fire", label: str = "") -> SearchResult:
    """A finished search `found` of one trial."""
    group = Group(label=label, trials=(0,), seeds=(0,), values={"autc": 0.5}, autc=0.5, autc_ci=(0.5, 0.5))
    outcome = Outcome("FAILED", cause=cause) if best is None else Outcome("FINISHED", {"autc": 0.5}, {4: 0.5})
    result = SearchResult(
        name="found", experiment="digits", algorithm="grid", objectives=("autc",), groups=(group,), best=best, front=(),
        trials=(TrialRow(number=0, run="found.000", overrides=(), chosen={}, outcome=outcome),), costs={},
        hypervolume=None, flops_per_trial=1.0, flops=1.0, tower_flops=0.0, accounting=0.0, utilisation=None,
        overhead_s=None, wall_seconds=1.0,
    )  # fmt: skip
    folder = home / "found"
    folder.mkdir(parents=True)
    (folder / "plan.json").touch()
    (folder / "result.json").write_text(result.model_dump_json())
    return result


def test_what_comes_next_can_be_typed_where_the_models_of_a_search_are(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = searched(home, best=0)
    print_search(found, json_=False)
    assert "next: tokendial promote found --dry-run\n" in capsys.readouterr().out
    print_search(found, json_=False, on="http://head:8265")
    assert "next: tokendial serve --model found.000 --on http://head:8265\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("best", "words", "advice"),
    [
        (0, ("found", "other"), "its best trial is: tokendial report found.000 other"),
        (0, ("other", "found"), "its best trial is: tokendial report other found.000"),
        (None, ("found", "other"), "none of its trials finished"),
    ],
)
def test_a_search_beside_a_run_is_refused_with_what_to_type(
    home: Path, best: int | None, words: tuple[str, ...], advice: str
) -> None:
    searched(home, best)
    done = said(*words)
    assert (done.exit_code, done.stderr) == (
        2,
        f"tokendial: search 'found' is many runs and is not compared with others; {advice}\n",
    )


def test_what_looks_like_markup_is_shown_as_it_is(home: Path) -> None:
    searched(home, None, cause="OSError: [/mnt/data] is gone", label="a=[red] :b: c=[/x]")
    done = said("found")
    assert done.exit_code == 0, done.output
    assert "trial 0 failed: OSError: [/mnt/data] is gone" in done.stdout
    assert "a=[red] :b: c=[/x]" in done.stdout

"""Reports are single files that need no network, escape what they show, and group runs by seed."""

import re
from dataclasses import replace
from html import escape
from io import StringIO
from pathlib import Path

import pytest
from report_samples import examples, name, result, scores, with_twins
from rich.console import Console
from tokendial.curve import CurvePoint, autc
from tokendial.report import compare_report, curve_html, examples_html, matrix_html
from tokendial.report.comparison import paired_tests
from tokendial.report.series import apart, series_of
from tokendial.report.terminal import print_comparison
from tokendial.results import ExampleAnswers

FETCHED = re.compile(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=(?!["']?data:)""")


def assert_offline(html: str) -> None:
    """Tags of the page itself load nothing; plotly's own source is one inline script."""
    outside = re.sub(r"<script\b[^>]*>.*?</script>", "<script></script>", html, flags=re.DOTALL)
    assert FETCHED.search(outside) is None
    assert re.search(r"<script[^>]+src=", html) is None


def test_runs_that_differ_in_their_seed_are_one_line():
    series = series_of([result(16, 0), result(None, 0), result(16, 1), result(None, 1)])
    assert [(line.label, len(line.seeds), line.twin) for line in series] == [
        ("tokenflex", 2, False),
        ("fixed 16", 2, True),
    ]
    half = [line.points[16].ci[1] - line.points[16].ci[0] for line in (series[0], series_of([result(None, 0)])[0])]
    assert half[0] < half[1]


def test_a_run_that_trained_at_one_of_its_counts_is_no_twin():
    whole, short = (result(None, seed).model_copy(update={"variant": "1a2b"}) for seed in (0, 1))
    series = series_of([short.model_copy(update={"trained_counts": (144,)}), whole])
    assert [(line.label, line.twin, line.trained) for line in series] == [("tokenflex", False, (4, 16, 144))]


def test_two_runs_of_one_seed_are_not_taken_for_seeds():
    other = result(None, 0).model_copy(update={"name": "me.digits.other"})
    series = series_of([result(None, 0), other])
    assert [len(line.seeds) for line in series] == [1, 1]
    assert len({line.label for line in series}) == 2


def test_variants_of_one_experiment_stay_apart():
    runs = [result(None, s).model_copy(update={"variant": v, "name": f"{v}{s}"}) for s in (0, 1) for v in ("a", "b")]
    assert sorted(len(line.seeds) for line in series_of(runs)) == [2, 2]


def test_seeds_that_drew_different_counts_are_one_line():
    runs = [result(None, s).model_copy(update={"variant": "a", "trained_counts": (4, 16, 144)[s:]}) for s in (0, 1)]
    assert [len(line.seeds) for line in series_of(runs)] == [2]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (({"data": "a"}, {"data": "b"}), "they were scored on different data"),
        (({}, {"data": "b"}), "of one it is not known what data it was scored on"),
        (({}, {"lineage": "x", "parent": "me.before"}), "they started from fresh weights and from 'me.before'"),
    ],
    ids=["data", "data of before", "weights"],
)
def test_seeds_that_differ_in_data_or_in_what_they_began_with_stay_apart_and_it_is_said_why(
    changes: tuple[dict[str, str], dict[str, str]], reason: str
):
    runs = [result(None, seed).model_copy(update=change) for seed, change in enumerate(changes)]
    labels = [f"tokenflex · digits · {run.name}" for run in runs]
    assert [(line.label, len(line.seeds)) for line in series_of(runs)] == [(label, 1) for label in labels]
    sentence = f"{' and '.join(labels)} are not one line, as {reason}"
    assert apart(series_of(runs)) == [sentence]
    assert escape(sentence) in compare_report(runs)
    out = StringIO()
    print_comparison(runs, Console(file=out, width=300, markup=False))
    assert sentence in out.getvalue()
    alike = [run.model_copy(update=changes[1]) for run in runs]
    assert [len(line.seeds) for line in series_of(alike)] == [2]


def test_different_grids_or_metrics_are_not_compared():
    points = {4: CurvePoint(0.5, (0.4, 0.6), 10)}
    other = result(16, 0).model_copy(update={"curve": points, "autc": autc(points)})
    with pytest.raises(ValueError, match="different evaluation grids are not compared"):
        series_of([result(None, 0), other])
    with pytest.raises(ValueError, match="different metrics are not compared"):
        series_of([result(None, 0), result(16, 0).model_copy(update={"split": "validation"})])
    with pytest.raises(ValueError, match="no finished run with a curve"):
        series_of([])


def test_the_comparison_is_one_offline_file_with_plotly_once():
    runs = [with_twins(), *(result(twin, seed) for twin in (4, 16, 144) for seed in (0, 1, 2))]
    html = compare_report(runs)
    assert_offline(html)
    assert html.count("plotly.js v") == 1
    assert html.count("Plotly.newPlot(") >= 3
    for part in ("Summary", "Quality and cost", "Trained at × served at", "fixed 144", "no paired test"):
        assert part in html


def test_the_comparison_tests_pairs_where_answers_are_at_hand():
    runs = [result(twin, seed) for twin in (None, 16) for seed in (0, 1)]
    answers = {name(twin, seed): scores(twin, seed) for twin in (None, 16) for seed in (0, 1)}
    tests = paired_tests(series_of(runs), answers)["fixed 16"]
    assert tests[144].ci[0] > 0.5
    assert sorted(tests[None].per_seed) == [0, 1]
    html = compare_report(runs, answers)
    assert "tokenflex minus the others" in html
    assert "no paired test" not in html


def test_answers_to_different_data_are_not_tested_pair_by_pair_and_it_is_said_why():
    runs = [result(twin, 0) for twin in (None, 4, 16)]
    data = {None: "a", 4: "a", 16: "b"}
    answers = {name(twin, 0): replace(scores(twin, 0), data=digest) for twin, digest in data.items()}
    assert list(paired_tests(series_of(runs), answers)) == ["fixed 4"]
    reason = "no paired test against fixed 16: they were scored on different data"
    assert reason in compare_report(runs, answers)
    assert reason in compare_report([runs[0], runs[2]], answers)


def test_answers_are_coloured_and_escaped(tmp_path: Path):
    html = examples_html(examples(), tmp_path / "examples.html").read_text("utf-8")
    assert_offline(html)
    assert html.count("data:image/png;base64,") == 4
    assert '<td class="wrong">&lt;8&gt;</td>' in html
    assert '<td class="right">3</td>' in html
    assert "<8>" not in html


def test_examples_that_depend_on_the_count_come_first(tmp_path: Path):
    steady = ExampleAnswers(b"", "steady?", "1", {4: "1", 16: "1"}, {4: 1.0, 16: 1.0})
    html = examples_html([steady, *examples(1)], tmp_path / "examples.html").read_text("utf-8")
    assert html.index("which digit is in row 0?") < html.index("steady?")


@pytest.mark.parametrize("which", ["curve", "matrix"])
def test_interactive_figures_are_self_contained(which: str, tmp_path: Path):
    run, path = with_twins(), tmp_path / f"{which}.html"
    written = curve_html([run], path) if which == "curve" else matrix_html(run.matrix, path)  # pyright: ignore[reportArgumentType]
    assert_offline(written.read_text("utf-8"))

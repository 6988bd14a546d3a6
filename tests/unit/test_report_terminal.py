"""Terminal tables say what the numbers say, in width and in words."""

import io

from report_samples import name, result, with_twins
from rich.console import Console
from tokendial.curve import Rise
from tokendial.report import print_comparison, print_result
from tokendial.report.terminal import BAR_CELLS, bar
from tokendial.results import RunResult


def printed(run: RunResult, width: int = 100) -> str:
    out = io.StringIO()
    print_result(run, Console(file=out, width=width))
    return out.getvalue()


def test_a_bar_is_as_long_as_its_quality():
    assert bar(0.5, 0.5, 0.5, cells=10).plain == "█████     "
    assert bar(0.05, 0.05, 0.05, cells=10).plain == "▌         "
    assert bar(0.5, 0.3, 0.7, cells=10).plain == "███├───┤  "
    for quality in (0.0, 0.999, 1.0):
        assert len(bar(quality, max(0.0, quality - 0.1), 1.0)) == BAR_CELLS


def test_a_run_prints_curve_groups_and_ledger():
    text = printed(result(None, 0))
    assert "accuracy on test" in text
    assert "● 4" in text
    assert "○ 9" in text
    assert "By question type" in text
    assert "0.111 CPU-hours" in text
    assert "Regret" not in text


def test_secondary_measures_are_printed():
    text = printed(result(None, 0).model_copy(update={"extras": {"token F1": {4: 0.25, 16: 0.5}}}))
    assert "Secondary measures" in text
    assert "0.250" in text


def test_rises_between_trained_counts_are_told_apart():
    found = {
        16: Rise(4, 0.6, (0.58, 0.62)),
        64: Rise(16, -0.001, (-0.004, 0.002)),
        144: Rise(64, -0.02, (-0.03, -0.01)),
    }
    text = printed(result(None, 0).model_copy(update={"rises": found}))
    assert "4 → 16: +60.00 points (+58.00 to +62.00, paired)\n" in text
    assert "16 → 64: -0.10 points (-0.40 to +0.20, paired): no difference that can be told" in text
    assert "64 → 144: -2.00 points (-3.00 to -1.00, paired): a fall" in text


def test_a_run_with_twins_prints_regret_and_matrix():
    text = printed(with_twins())
    assert "Regret against twins of the same steps" in text
    assert "Trained at × served at" in text


def test_no_line_is_wider_than_the_terminal():
    assert max(map(len, printed(with_twins(), width=80).splitlines())) <= 80


def test_a_failed_run_prints_nothing_it_does_not_have():
    assert printed(RunResult(run_id=None, name="x", status="FAILED")) == ""


def test_a_comparison_has_a_row_per_group_of_seeds():
    out = io.StringIO()
    runs = [result(twin, seed) for twin in (16, None) for seed in (0, 1)]
    print_comparison(runs, Console(file=out, width=100))
    rows = [line for line in out.getvalue().splitlines() if "│" in line]
    assert len(rows) == 2
    assert "tokenflex" in rows[0]
    assert "fixed 16" in rows[1]
    assert name(None, 0) not in out.getvalue()

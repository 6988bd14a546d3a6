"""Every command of the documentation runs: here, at a smaller size in a named test, or where its mark says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "workloads").rglob("README.md")),
]  # fmt: skip
PROGRAM = re.compile(r"(tokendial|make|mlflow|ray|kubectl|prometheus|promtool|python|pip|clusters/\S+) ")
# Cheap, and run as they are written, in this order where a later one needs an earlier.
HERE = (
    "tokendial train --list",
    "tokendial train digits --help",
    "tokendial serve --help",
    "tokendial bench kernels --help",
    "tokendial keys add alice --rate 20 --min-quality 0.9 --may-bend --priority 1",
    "tokendial keys list",
    "tokendial keys revoke alice",
    "python -m tokendial.sizing vlm.paper",
)
# What runs the same command on less data, fewer steps or a cluster of this machine; the first that fits counts.
ELSEWHERE = {
    r"tokendial train .*--on ": "test_a_run_is_sent_followed_and_recorded_as_what_it_is_here",
    # A cluster is told to run this very command.
    r"tokendial train --config": "test_a_run_is_sent_followed_and_recorded_as_what_it_is_here",
    r"tokendial train digits --dry-run": "test_a_dry_run_forecasts_and_writes_nothing",
    r"tokendial train mine": "test_modules_of_the_guide_import_and_what_follows_them_runs",
    r"tokendial train ": "test_two_workers_train_to_the_end_and_leave_everything_behind",
    r"tokendial eval .*--twins": "test_twins_fill_regret_and_matrix_and_last_stays_the_flexible_run",
    r"tokendial eval ": "test_eval_scores_counts_never_trained_at_and_folders_that_were_copied",
    r"tokendial report (last|RUN RUN)": "test_a_finished_run_returns_at_once_and_a_new_one_forks_its_weights",
    r"tokendial export": "test_export_copies_a_folder_that_evaluates_and_refuses_what_is_in_the_way",
    r"tokendial doctor": "test_doctor_reports_each_check_and_exits_by_what_it_found",
    r"tokendial search .*--space": "test_of_twenty_trials_five_are_sabotaged_and_fifteen_finish",
    r"tokendial search .*--trials": "test_asha_stops_trials_early_and_counts_what_they_spent",
    r"tokendial (search|report NAME|promote)": "test_a_grid_is_trained_compared_reported_and_promoted",
    r"tokendial serve .*--on ": "test_an_endpoint_is_sent_answers_and_is_stopped",
    r"tokendial serve": "test_a_model_is_served_by_the_command_until_it_is_interrupted",
    r"tokendial status --watch": "test_a_watched_status_asks_again_until_it_is_interrupted",
    r"tokendial logs RUN --follow": "test_logs_and_status_answer_by_name_and_stay_when_the_folder_does",
    r"tokendial stop RUN": "test_a_stopped_run_ends_as_killed_and_the_same_command_continues_it",
    # Their rows are kept, and every figure follows from its samples.
    r"tokendial bench (train|serve|jobs|search)": "test_recorded_ratios_follow_from_their_recorded_samples",
    r"make demo": "test_make_demo_trains_the_demonstration_to_the_curve_of_the_readme",
    r"make mlflow": "test_make_mlflow_serves_the_runs_folder_to_named_hosts_only",
    r"clusters/local/head": "test_a_run_is_sent_followed_and_recorded_as_what_it_is_here",
    r"clusters/local/worker": "test_a_run_over_two_nodes_loses_one_and_goes_on_when_it_is_back_or_on_what_is_left",
    r"mlflow ui": "test_pages_of_mlflow_show_runs_curves_searches_and_models",
    r"prometheus ": "test_every_panel_of_training_has_data",
    r"promtool ": "test_promtool_accepts_configuration_and_rules",
}  # fmt: skip


def commands() -> Iterator[tuple[str, str, str]]:
    """Page, command and mark of every indented command line outside of fenced code."""
    for page in PAGES:
        mark, text = "", page.read_text().replace("\\\n", " ")
        for line in re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).splitlines():
            command, _, comment = line.strip().partition(" #")
            # A mark may be said once for a block.
            mark = mark if mark.endswith("as all of these") and command else comment.strip()
            if line.startswith("    ") and PROGRAM.match(f"{command} "):
                for part in command.split(" && "):
                    yield page.relative_to(ROOT).as_posix(), " ".join(part.split()), mark


COMMANDS = list(dict.fromkeys(commands()))


def test_every_command_is_run_somewhere_or_says_what_it_needs() -> None:
    """A command of `make` is a target of the Makefile; what needs hardware, a cluster or root says so beside it."""
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    left = []
    for page, command, mark in COMMANDS:
        made = command.startswith("make ") and command.split()[1] in targets
        if not (made or command in HERE or mark.startswith("needs ") or _elsewhere(command)):
            left.append(f"{page}: {command}")
    assert left == []


def _elsewhere(command: str) -> str | None:
    return next((test for pattern, test in ELSEWHERE.items() if re.match(pattern, command)), None)


def test_the_tests_that_run_commands_are_there_and_no_entry_is_left_over() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in ELSEWHERE.values() if f"def {name}(" not in tests] == []
    shown = [command for _, command, _ in COMMANDS]
    assert [command for command in HERE if command not in shown] == []
    used = {next(pattern for pattern in ELSEWHERE if re.match(pattern, line)) for line in shown if _elsewhere(line)}
    assert used == set(ELSEWHERE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("docs")


@pytest.mark.parametrize("command", HERE)
def test_a_cheap_command_runs_as_it_is_written(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENDIAL_HOME", str(folder / "runs"))
    words = command.split()
    program = ["-m", "tokendial", *words[1:]] if words[0] == "tokendial" else words[1:]
    done = subprocess.run([sys.executable, *program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()

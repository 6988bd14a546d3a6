"""What the documentation shows runs: the notebook from top to bottom, the modules of the guides, every command line."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from jobs_lab import free_ports
from prometheus_lab import OPENER
from run_lab import say, until
from tokendial.cli import app
from tokendial.experiments import ConfigError
from tokendial.resolve import resolve

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^ {4}(tokendial .*?)(?: {2,}#.*| +then.*)?$", re.MULTILINE)
PLACEHOLDERS = re.compile(r"^(RUN|NAME|FOLDER|URL|KEY=VALUE|mine(:|\.).*)$|/NAME/|[A-Z]{3,}(=[A-Z]+)?$")


def run_script(text: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", text], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_quickstart_runs_from_top_to_bottom(tmp_path: Path, ray_cluster: str) -> None:
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    assert [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"] == [[]] * len(cells)
    done = run_script("\n".join(cells), tmp_path, RAY_ADDRESS=ray_cluster, TOKENDIAL_HOME=str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    for words in ("mean count: 77.6", "FINISHED in", "AUTC", "144 tokens: "):
        assert words in done.stdout, done.stdout


@pytest.mark.slow
def test_make_demo_trains_the_demonstration_to_the_curve_of_the_readme(tmp_path: Path) -> None:
    done = make("demo", TOKENDIAL_HOME=str(tmp_path / "runs"))
    out, err = done.communicate()
    assert done.returncode == 0, err
    assert "next:" in out
    result = json.loads(next(tmp_path.glob("runs/*/result.json")).read_text())
    assert result["trained_counts"] == [4, 16, 144]
    quality = {int(count): point["quality"] for count, point in result["curve"].items()}
    assert quality[144] >= 0.93
    assert quality[4] <= quality[144] - 0.1
    assert all(rise["ci"][1] >= 0 for rise in result["rises"].values()), "a fall between trained counts"
    assert {point["n"] for point in result["curve"].values()} == {3 * 2048}


@pytest.mark.slow
def test_make_mlflow_serves_the_runs_folder_to_named_hosts_only(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
    server = make("mlflow", PORT=str(port), TOKENDIAL_HOME=str(tmp_path / "runs"))
    try:
        until("an answer", lambda: answer(address) == 200, server)
        assert answer(address, Host="elsewhere.example") == 403
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.communicate()


def make(target: str, **environment: str) -> subprocess.Popen[str]:
    """`make TARGET` in the checkout, in a process group of its own and without the tests' cluster."""
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | environment
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ["make", target], cwd=ROOT, env=own, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def answer(address: str, **headers: str) -> int:
    """The status that a server on this machine gives; 0 where there is none."""
    try:
        with OPENER.open(urllib.request.Request(address, headers=headers), timeout=10) as answered:
            return answered.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def blocks() -> list[str]:
    """The Python of docs/extending.md, in its order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_modules_of_the_guide_import_and_what_follows_them_runs(tmp_path: Path, home: Path, ray_cluster: str) -> None:
    for block in blocks():
        name = re.match(r"# (\w+\.py)\n", block)
        if name:
            (tmp_path / name[1]).write_text(block)
        else:
            done = run_script("from laws import rising\n" + block, tmp_path)
            assert done.returncode == 0, done.stderr
    said = say("train", "mine:short", "--json", home=home, address=ray_cluster, cwd=tmp_path)
    assert said.code == 0, said.err
    assert said.document["curve"].keys() == {"4", "16"}


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for line in COMMAND.findall(page.read_text().replace("\\\n", " ")):
            yield from ((page.name, part.strip()) for part in line.split("&&") if part.strip().startswith("tokendial"))


@pytest.mark.parametrize(("page", "line"), list(commands()), ids=lambda value: value)
def test_every_command_of_the_documentation_is_one_that_this_tokendial_takes(page: str, line: str) -> None:
    words = shlex.split(line.partition(" #")[0])[1:]
    context, command = parsed(words)
    if command == "train" and context["experiment"] and not PLACEHOLDERS.search(context["experiment"]):
        overrides = [word for word in context["overrides"] or () if not PLACEHOLDERS.search(word)]
        try:
            resolve(context["experiment"], overrides, machine_cpus=None)
        except ConfigError as error:
            pytest.fail(f"{page}: {line}: {error}")


def parsed(words: list[str]) -> tuple[dict[str, Any], str]:
    """The parameters that Typer reads from a command line; raises where it would refuse it."""
    group: Any = typer.main.get_command(app)
    with click.Context(group, info_name="tokendial") as parent:
        name, command, rest = group.resolve_command(parent, words)
        while isinstance(command, click.Group):
            with command.make_context(name, rest, parent=parent) as inner:
                _, command, rest = command.resolve_command(inner, rest[:])
        assert command is not None
        # Help ends a context at once where it is an eager option of Typer's own.
        rest = [word for word in rest if word != "--help"] if "--help" in rest else rest
        with command.make_context(name, rest, parent=parent, resilient_parsing=not rest) as found:
            return found.params, str(name)

"""What a laptop waits for: the client's install and import, and a run's first step on a cluster against one here."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokendial.bench.cluster import Place, finished, local_cluster
from tokendial.bench.records import Row, single, spread
from tokendial.bench.start import first_step
from tokendial.failures import WorkFailed
from tokendial.jobs import package, training_order
from tokendial.resolve import resolve

EXPERIMENT = "digits.tiny"
SHORT = ("budget.steps=4", "evaluation.test_examples=8", "evaluation.table_examples=0")
IMPORT = "import time; began = time.perf_counter(); import tokendial; print(time.perf_counter() - began)"
MOST_OVER_S = 20.0
MOST_UPLOAD_MB = 2.0
MOST_INSTALL_S = 60.0
MOST_IMPORT_S = 0.3
IMPORTS = 11


def client_rows(repository: Path, folder: Path) -> list[Row]:
    """Build the wheel, install it without extras into a fresh environment, import it there."""
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, repository)
    (wheel,) = folder.glob("tokendial-*.whl")
    began = time.perf_counter()
    _run(sys.executable, "-m", "venv", folder / "client")
    python = folder / "client" / "bin" / "python"
    _run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel)
    install_s = time.perf_counter() - began
    imports = [float(_run(python, "-c", IMPORT)) for _ in range(IMPORTS)]
    order = training_order(resolve(EXPERIMENT, SHORT, machine_cpus=None), name="bench")
    upload_mb = (len(package.code()) + len(package.archive(order.files))) / 1e6
    fresh = "base install of the wheel, fresh environment"
    return [
        single("upload of a run", f"{EXPERIMENT}, code and configuration", upload_mb, "MB", MOST_UPLOAD_MB),
        single("base install", f"{fresh}, made in this time too", install_s, "s", MOST_INSTALL_S),
        Row(name="import tokendial", setting=fresh, unit="s", at_most=MOST_IMPORT_S, **spread(imports)),
    ]


def sent_rows(scripts: Path, folder: Path, rounds: int) -> list[Row]:
    """The same short run here and on a cluster that has had one run before, in turns."""
    times: dict[str, list[float]] = {"here": [], "sent": []}
    with local_cluster(scripts) as place:
        for number in range(rounds + 1):
            here = _first_step_here(place, folder, number)
            sent = _first_step_sent(place, folder, number)
            # The first round warms the cluster and the caches of both.
            if number:
                times["here"].append(here)
                times["sent"].append(sent)
    over = [sent - here for sent, here in zip(times["sent"], times["here"], strict=True)]
    setting = f"{EXPERIMENT}, command to first step"
    rows: Mapping[str, Sequence[float]] = {"run started here": times["here"], "run sent": times["sent"]}
    return [
        Row(name="run sent, over one started here", setting=setting, unit="s", at_most=MOST_OVER_S, **spread(over)),
        *(Row(name=name, setting=setting, unit="s", **spread(taken)) for name, taken in rows.items()),
    ]


def _first_step_here(place: Place, folder: Path, number: int) -> float:
    return _first_step(place, folder, folder / "runs", f"here-{number}")


def _first_step_sent(place: Place, folder: Path, number: int) -> float:
    return _first_step(place, folder, place.home, f"sent-{number}", "--on", place.url)


def _first_step(place: Place, folder: Path, home: Path, name: str, *where: str) -> float:
    began = time.time()
    said = finished(place.start(folder, "train", EXPERIMENT, *SHORT, "--name", name, *where))
    if said.code:
        raise WorkFailed(f"run {name} failed: {said.err.strip()[-400:]}")
    return first_step(home / "mlflow.db", name) - began


def _run(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkFailed(f"{' '.join(map(str, words[:6]))} failed: {done.stderr.strip()[-400:]}")
    return done.stdout

"""The pictures of docs/comparing.md are made anew: MLflow's own pages show what the text says they show."""

from pathlib import Path

import pytest
from pictures import CHROMIUM, make_runs, server, shoot

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed; `make system-deps` installs one")
def test_pages_of_mlflow_show_runs_curves_searches_and_models(home: Path, tmp_path: Path, ray_cluster: str) -> None:
    make_runs()
    with server(home) as address:
        shoot(address, tmp_path)
    made = sorted(path.name for path in tmp_path.glob("*.png"))
    kept = sorted(path.name for path in (ROOT / "docs" / "images").glob("mlflow-*.png"))
    assert made == kept
    assert all(path.stat().st_size < 200_000 for path in (ROOT / "docs" / "images").glob("mlflow-*.png"))
    text = (ROOT / "docs" / "comparing.md").read_text()
    assert [name for name in kept if f"images/{name}" not in text] == []

"""Figures are drawn for every shape of input: one count, many counts, many runs; labels do not collide."""

from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from report_samples import result, with_twins
from tokendial.curve import ItemScores, served_matrix, token_curve
from tokendial.report import curve_png, exposure_png, matrix_png
from tokendial.report.curves import spread
from tokendial.report.palette import colours
from tokendial.report.series import series_of
from tokendial.schedule import PRESETS, TokenSchedule, preset


def assert_drawn(path: Path) -> None:
    """A picture of some size with at least a hundred distinct colours (antialiased ink on white)."""
    with Image.open(path) as image:
        assert min(image.size) > 300
        seen = image.convert("RGB").getcolors(1 << 20)
    assert seen is not None
    assert len(seen) > 100


def test_one_run_is_drawn(tmp_path: Path):
    assert_drawn(curve_png([result(None, 0)], tmp_path / "curve.png"))


def test_twins_over_seeds_are_drawn_together(tmp_path: Path):
    runs = [result(twin, seed) for twin in (None, 4, 16, 144) for seed in (0, 1)]
    assert_drawn(curve_png(runs, tmp_path / "curve.png"))


def test_a_run_with_twins_is_drawn_with_their_curves(tmp_path: Path):
    run = with_twins(seeds=(0, 1))
    assert [line.label for line in series_of([run])] == ["tokenflex", "fixed 4", "fixed 16", "fixed 144"]
    assert_drawn(curve_png([run], tmp_path / "curve.png"))


def test_a_grid_of_one_count_is_drawn(tmp_path: Path):
    curve = token_curve(ItemScores(["a", "b"], {16: [0.0, 1.0]}))
    run = result(None, 0).model_copy(update={"curve": curve.points, "autc": curve.autc, "autc_ci": curve.autc_ci})
    assert_drawn(curve_png([run], tmp_path / "curve.png"))


def test_the_matrix_is_drawn(tmp_path: Path):
    matrix = with_twins().matrix
    assert matrix is not None
    assert_drawn(matrix_png(matrix, tmp_path / "matrix.png"))


def test_a_matrix_of_the_flexible_model_alone_is_drawn(tmp_path: Path):
    matrix = served_matrix({0: ItemScores(["a"], {4: [0.2], 16: [1.0]})}, {})
    assert_drawn(matrix_png(matrix, tmp_path / "matrix.png"))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_drawn(name: str, tmp_path: Path):
    counts = PRESETS[name].counts((4, 16, 64, 144))
    assert_drawn(exposure_png(TokenSchedule(preset(name, counts)), tmp_path / f"{name}.png", horizon=100))


def test_labels_keep_their_distance_and_order():
    heights = [0.10, 0.95, 0.96, 0.97]
    moved = spread(heights, 0.05)
    assert moved[0] == 0.10
    assert all(after - before >= 0.05 - 1e-12 for before, after in pairwise(moved))
    assert sum(moved[1:]) == pytest.approx(sum(heights[1:]))


def test_no_two_series_of_a_figure_share_a_colour():
    chosen = colours([False, True, False, True, False, False])
    assert len(set(chosen)) == 6
    assert chosen[1] == "#0072B2"

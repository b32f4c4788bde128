"""Figures: panels, windows, orientation, and rows with whatever keys."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from distsynth.metrics.image import central_slice
from distsynth.reporting.figures import COLUMNS, comparison_figure, curves_figure
from sharding.io.figures import figure_png

SHAPE = (6, 8, 10)


@pytest.fixture
def volumes():
    """Source, target and two methods' volumes."""
    rng = np.random.default_rng(3)
    source, target, one, two = rng.normal(size=(4, *SHAPE)).astype(np.float32)
    return source, target, {"identity": one, "unet-7": two}


def pictures(figure: Figure):
    """Axes with a volume's picture, without colourbars."""
    return [axes for axes in figure.axes if axes.images]


def titles(figure: Figure):
    return [axes.get_title() for axes in figure.axes]


def test_central_slice_is_the_largest_and_of_several_the_middle():
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 2:6, 3] = True
    mask[1, 2, 5] = True
    assert central_slice(mask) == 3
    assert central_slice(np.ones(SHAPE, bool)) == 5
    assert central_slice(mask, axis=0) == 1


def test_comparison_has_a_row_for_each_method(volumes):
    source, target, methods = volumes
    figure = comparison_figure(methods, source, target, spacing_mm=(0.5, 0.5, 2))
    panels = pictures(figure)
    assert len(panels) == 10
    assert [panel.get_title() for panel in panels[:5]] == list(COLUMNS)
    assert [panels[0].get_ylabel(), panels[5].get_ylabel()] == ["identity", "unet-7"]
    bars = [axes for axes in figure.axes if any(isinstance(c, QuadMesh) for c in axes.collections)]
    assert len(bars) == 3


def test_comparison_shows_the_right_voxels_upright(volumes):
    source, target, methods = volumes
    figure = comparison_figure(methods, source, target, spacing_mm=(0.5, 0.5, 2), axis=0)
    panels = pictures(figure)
    synthetic = methods["unet-7"]
    shown = [panel.images[0] for panel in panels[5:]]
    expected = (source, synthetic, target, synthetic - source, synthetic - target)
    for image, volume in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(image.get_array(), volume[3].T)
        assert image.origin == "lower"
    assert panels[0].get_aspect() == 4


def test_windows_are_shared_and_differences_symmetric_with_blue_positive(volumes):
    source, target, methods = volumes
    panels = pictures(comparison_figure(methods, source, target))
    images = [panel.images[0] for panel in panels]
    assert len({image.get_clim() for k, image in enumerate(images) if k % 5 < 3}) == 1
    for column in (3, 4):
        (low, high) = images[column].get_clim()
        assert images[column + 5].get_clim() == (low, high)
        assert low == -high < 0
        red, _, blue, _ = images[column].cmap(1.0)
        assert blue > red


def test_windows_look_inside_the_mask_only(volumes):
    source, target, methods = volumes
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 2:5, 4] = True
    wild = target.copy()
    wild[~mask] = 1e6
    images = [p.images[0] for p in pictures(comparison_figure(methods, source, wild, mask))]
    assert images[0].get_clim()[1] < 10
    assert images[4].get_clim()[1] < 10


def test_several_slices_are_named(volumes):
    source, target, methods = volumes
    figure = comparison_figure(methods, source, target, slices=[2, 5])
    labels = [panel.get_ylabel() for panel in pictures(figure)[::5]]
    assert labels == [f"{name}\nslice {k}" for k in (2, 5) for name in methods]


def test_constant_and_unfinished_volumes_can_be_shown():
    zeros = np.zeros(SHAPE, np.float32)
    holes = np.full(SHAPE, np.nan, np.float32)
    figure = comparison_figure({"a $x_$": zeros, "b": holes}, zeros, zeros)
    assert figure_png(figure, dpi=30).startswith(b"\x89PNG")


@pytest.mark.slow
def test_png_is_reproducible(volumes):
    source, target, methods = volumes
    first, second = (figure_png(comparison_figure(methods, source, target), 40) for _ in range(2))
    assert first == second
    assert b"Software" not in first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volumes": {}}, "no synthetic volume"),
        ({"source": np.zeros((2, 2, 2))}, "source must have the target's shape"),
        ({"volumes": {"net": np.zeros((2, 2, 2))}}, "net must have the target's shape"),
        ({"mask": np.zeros(SHAPE, bool)}, "mask is empty"),
        ({"axis": 3}, "axis must be 0, 1 or 2"),
        ({"spacing_mm": (1, 1, 0)}, "spacing_mm"),
        ({"slices": [10]}, r"slices must be in 0\.\.9"),
        ({"slices": []}, "slices must be"),
        ({"target": np.zeros((2, 2))}, "target must be of shape"),
    ],
)
def test_comparison_refuses(volumes, change, message):
    source, target, methods = volumes
    with pytest.raises(ValueError, match=message):
        comparison_figure(**{"volumes": methods, "source": source, "target": target, **change})


def lines(figure: Figure, title: str):
    """Label -> values of the lines in a panel."""
    (panel,) = [axes for axes in figure.axes if axes.get_title() == title]
    return {line.get_label(): line.get_ydata() for line in panel.get_lines()}


def test_curves_of_an_adversarial_run():
    rows = [
        {"step": 0, "epoch": 0, "train/recon": 1.0, "train/bce": 0.7, "lr/generator": 1e-4},
        {"step": 1, "train/recon": 0.5, "train/generator": 2.0, "train/discriminator": 1.3},
        {"step": 1, "val/recon": 0.8, "val/psnr": 19.0, "val/psnr255": 67.0, "time/data": 1},
        {"step": 2, "val/ssim_2d": 0.4, "val/ssim_global": 0.5, "train/new_term": 3, "note": "x"},
    ]
    figure = curves_figure(rows)
    assert titles(figure) == [
        "reconstruction loss",
        "new_term",
        "adversarial losses",
        "PSNR in the mask (dB, peak = target's range)",
        "PSNR in the mask (dB, peak 255, eq. 7)",
        "SSIM in the mask (-1 to 1)",
        "learning rate",
    ]
    recon = lines(figure, "reconstruction loss")
    np.testing.assert_array_equal(recon["training"], [1.0, 0.5])
    np.testing.assert_array_equal(recon["validation"], [0.8])
    assert set(lines(figure, "adversarial losses")) == {"bce", "generator", "discriminator"}
    assert set(lines(figure, "SSIM in the mask (-1 to 1)")) == {
        "windowed 2D, validation",
        "global (eq. 8), validation",
    }


def test_a_supervised_run_has_no_adversarial_panel():
    figure = curves_figure([{"step": 0, "train/generator": 1.0}])
    assert titles(figure) == ["generator loss (weighted total)"]


def test_divergence_leaves_a_gap():
    values = [1.0, math.nan, math.inf, 2.0]
    figure = curves_figure([{"step": k, "train/recon": v} for k, v in enumerate(values)])
    shown = lines(figure, "reconstruction loss")["training"]
    np.testing.assert_array_equal(shown, [1, math.nan, math.nan, 2])
    assert figure_png(figure, 30)


def test_no_text_of_the_curves_is_cut_and_no_title_meets_another():
    from distsynth.reporting.figures import LOSSES, SHARED, TITLES

    terms = [*TITLES, *SHARED, "ssim_2d", *LOSSES]
    rows = [{"step": k, **{f"val/{term}": 1.2345 + 1e-4 * k for term in terms}} for k in (1, 9)]
    figure = curves_figure([*rows, {"step": 9, "train/discriminator": 1.0, "lr/generator": 1e-3}])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    whole = figure.get_window_extent(renderer)
    assert {*TITLES.values(), *SHARED.values()} - {*titles(figure)} <= {TITLES["generator"]}
    boxes = [axes.title.get_window_extent(renderer) for axes in figure.axes]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
    for axes in figure.axes:
        around = axes.get_tightbbox(renderer)
        assert whole.x0 <= around.x0 and around.x1 <= whole.x1
        assert whole.y0 <= around.y0 and around.y1 <= whole.y1


def test_a_single_validation_stands_at_its_step():
    rows = [{"step": k, "train/recon": 1.0 / k} for k in range(1, 40)]
    figure = curves_figure([*rows, {"step": 39, "val/psnr": 20.0}])
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert axes.get_xlim() == pytest.approx((0, 1.03 * 39))


def test_long_curves_get_a_moving_average_and_wide_ones_a_log_scale():
    rows = [{"step": k, "train/recon": 2.0 ** (-k / 20), "lr/generator": 0} for k in range(300)]
    figure = curves_figure(rows)
    assert "training, mean of 6" in lines(figure, "reconstruction loss")
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
    assert figure_png(figure, 30)


@pytest.mark.parametrize("rows", [[], [{"step": 0}], [{"step": 0, "epoch": 1}]])
def test_an_empty_record_says_so(rows):
    figure = curves_figure(rows)
    assert not figure.axes
    assert figure.texts[0].get_text() == "no metrics were logged"


def test_all_values_lost():
    figure = curves_figure([{"step": 0, "train/recon": math.nan, "lr/generator": math.nan}])
    assert figure_png(figure, 30)

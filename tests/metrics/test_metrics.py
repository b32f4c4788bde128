"""Metrics against values worked out by hand, and against what they are meant to tell apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from distsynth.inference.stitching import border_planes
from distsynth.metrics import image as metrics
from sharding.shards.patches import dense_locations, window


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def pair(rng):
    """(synthetic, target): smooth anatomy with a little noise between them."""
    target = ndimage.gaussian_filter(rng.normal(size=(24, 22, 20)), 1.5)
    target = (target / target.std()).astype(np.float32)
    return target + 0.1 * rng.normal(size=target.shape).astype(np.float32), target


def test_mse_by_hand():
    target = np.zeros((2, 2, 2), np.float32)
    synthetic = target.copy()
    synthetic[0, 0, 0], synthetic[1, 1, 1] = 2, 4
    mask = np.zeros((2, 2, 2), bool)
    mask[0, 0, :] = True
    assert metrics.mse(synthetic, target) == 20 / 8
    assert metrics.mse(synthetic, target, mask) == 2


def test_psnr_by_hand():
    assert metrics.psnr(0.01, 1) == pytest.approx(20)
    assert metrics.psnr(0.0174, 255) - metrics.psnr(0.0174, 1) == pytest.approx(48.13, abs=0.005)
    assert metrics.psnr(0.0174, 255) == pytest.approx(65.73, abs=0.01)
    assert metrics.psnr(0, 1) == math.inf
    with pytest.raises(ValueError, match="PSNR needs"):
        metrics.psnr(-1, 1)


def test_global_ssim_by_hand():
    target = np.array([[[0.0, 2.0]]])
    synthetic = np.array([[[1.0, 5.0]]])
    # means 3 and 1, variances 4 and 1, covariance 2; c1 = 0.01, c2 = 0.09 at range 10
    expected = (2 * 3 * 1 + 0.01) * (2 * 2 + 0.09) / ((9 + 1 + 0.01) * (4 + 1 + 0.09))
    assert metrics.global_ssim(synthetic, target, 10) == pytest.approx(expected)


def test_ssim_is_one_at_equality_and_less_elsewhere(pair):
    synthetic, target = pair
    for measure in (
        metrics.global_ssim,
        metrics.windowed_ssim,
        lambda *a: metrics.windowed_ssim(*a, dims=2, axis=0),
    ):
        assert measure(target, target, 5.0) == pytest.approx(1)
        assert 0 < measure(synthetic, target, 5.0) < 0.999


def test_windowed_ssim_in_2d_is_the_mean_over_slices(pair):
    synthetic, target = pair
    slices = [
        metrics._ssim(synthetic[:, index], target[:, index], 5.0).mean() for index in range(22)
    ]
    assert metrics.windowed_ssim(synthetic, target, 5.0, dims=2, axis=1) == pytest.approx(
        np.mean(slices), rel=1e-5
    )


def test_windowed_ssim_sees_only_the_mask(pair):
    _, target = pair
    synthetic = target.copy()
    synthetic[:6] = 0
    mask = np.zeros(target.shape, bool)
    mask[14:] = True
    assert metrics.windowed_ssim(synthetic, target, 5.0, mask) == pytest.approx(1)
    assert metrics.windowed_ssim(synthetic, target, 5.0) < 0.9


def tiles(shape, side):
    """Locations of blocks that touch but do not overlap."""
    return dense_locations(shape, (side,) * 3, side, (2,))


def test_seam_index_is_one_for_errors_that_ignore_patches(rng):
    shape = (48, 48, 48)
    borders = border_planes(tiles(shape, 12), shape, (12,) * 3)
    for sigma in (0, 2):
        error = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
        # a trend of the error's size through the volume must not look like a seam
        error = error * np.linspace(0.2, 3, 48)[:, None, None]
        target = rng.normal(size=shape)
        assert metrics.seam_index(target + error, target, borders) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("size", [(12, 12, 12), (12, 12)])
def test_seam_index_rises_with_an_offset_of_each_patch(rng, size):
    shape = (36, 36, 24)
    locations = dense_locations(shape, size, 12, (2,))
    borders = border_planes(locations, shape, size)
    target = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    target /= target.std()
    error = 0.1 * rng.normal(size=shape)
    calm = metrics.seam_index(target + error, target, borders)
    for axis, *corner in locations.tolist():
        error[window(size, axis, corner)] += 0.3 * rng.normal()
    index = metrics.seam_index(target + error, target, borders)
    assert calm < 1.05
    assert index > 2
    mask = np.zeros(shape, bool)
    mask[4:30, 4:30, 4:20] = True
    assert metrics.seam_index(target + error, target, borders, mask) > 1.5
    assert 1.05 < metrics.seam_index(target + error, None, borders) < index


def test_seam_index_by_hand():
    error = np.zeros((6, 1, 1))
    error[:, 0, 0] = [0, 1, 2, 5, 6, 7]
    borders = [np.array([3]), np.array([], int), np.array([], int)]
    assert metrics.seam_index(error, np.zeros_like(error), borders) == pytest.approx(3)


def test_seam_index_at_its_ends(pair):
    _, target = pair
    none = [np.array([], int)] * 3
    some = [np.array([8, 16]), np.array([10]), np.array([], int)]
    every = [np.arange(1, size) for size in target.shape]
    assert math.isnan(metrics.seam_index(target, target, none))
    assert math.isnan(metrics.seam_index(target, None, every))
    assert metrics.seam_index(target, target, some) == 1
    step = target.copy()
    step[8:] += 1
    assert metrics.seam_index(np.round(step - target), np.zeros_like(target), some) == math.inf
    with pytest.raises(ValueError, match="borders along axis 0"):
        metrics.seam_index(target, target, [np.array([24]), *none[1:]])


def test_consistency_error_of_a_copy_and_of_noise(pair, rng):
    _, anatomy = pair
    mask = rng.random(anatomy.shape) < 0.8
    source = -np.tanh(0.5 * anatomy)
    assert metrics.consistency_error(anatomy, source, mask) < 0.1
    assert metrics.consistency_error(3 * source - 7, source, mask) == pytest.approx(0, abs=1e-6)
    noise = rng.normal(size=anatomy.shape)
    assert 0.97 < metrics.consistency_error(noise, source, mask) <= 1
    assert metrics.consistency_error(np.zeros_like(source), source, mask) == pytest.approx(1)
    shifted = metrics.consistency_error(np.roll(anatomy, 1, 0), source, mask)
    assert 0.2 < shifted < 1
    with pytest.raises(ValueError, match="constant"):
        metrics.consistency_error(anatomy, np.ones_like(anatomy), mask)


def test_volume_metrics_agree_with_their_parts(pair):
    synthetic, target = pair
    mask = target > 0
    values = metrics.volume_metrics(synthetic, target, 5.0, mask)
    assert list(values) == [key for key in metrics.METRICS if key.endswith(("_mask", "_whole"))]
    assert values["mse_mask"] == metrics.mse(synthetic, target, mask)
    assert values["psnr_whole"] == metrics.psnr(values["mse_whole"], 5.0)
    assert values["psnr255_mask"] == metrics.psnr(values["mse_mask"], 255)
    assert values["ssim_global_mask"] == metrics.global_ssim(synthetic, target, 5.0, mask)
    assert values["ssim_mask"] == metrics.windowed_ssim(synthetic, target, 5.0, mask)
    assert values["ssim_whole"] == metrics.windowed_ssim(synthetic, target, 5.0)


def test_bootstrap_is_reproducible_and_contains_the_mean(rng):
    values = rng.normal(3, 1, 12)
    low, high = metrics.bootstrap_interval(values)
    assert low < values.mean() < high
    assert metrics.bootstrap_interval(values) == (low, high)
    assert metrics.bootstrap_interval(values, seed=1) != (low, high)
    # the normal interval, mean +- 1.96 s / sqrt(n), is about as wide
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(12), rel=0.1)
    assert metrics.bootstrap_interval([2.0, 2.0]) == (2, 2)
    assert np.isnan(metrics.bootstrap_interval([1.0])).all()
    assert np.isnan(metrics.bootstrap_interval([1.0, math.inf, 2.0])).all()
    with pytest.raises(ValueError, match="one or more"):
        metrics.bootstrap_interval([])
    with pytest.raises(ValueError, match="level"):
        metrics.bootstrap_interval([1.0, 2.0], level=95)


@pytest.mark.parametrize(
    "measure",
    [
        metrics.mse,
        lambda a, b, mask: metrics.global_ssim(a, b, 5.0, mask),
        lambda a, b, mask: metrics.windowed_ssim(a, b, 5.0, mask),
        lambda a, b, mask: metrics.volume_metrics(a, b, 5.0, mask),
        metrics.consistency_error,
    ],
)
def test_wrong_shapes_and_empty_masks_raise(pair, measure):
    synthetic, target = pair
    full = np.ones(target.shape, bool)
    with pytest.raises(ValueError, match="one shape"):
        measure(synthetic[1:], target, full)
    with pytest.raises(ValueError, match="one shape"):
        measure(synthetic, target, full[1:])
    with pytest.raises(ValueError, match="mask is empty"):
        measure(synthetic, target, ~full)


def test_seam_index_refuses_wrong_shapes_and_empty_masks(pair):
    synthetic, target = pair
    borders = [np.array([8])] * 3
    full = np.ones(target.shape, bool)
    with pytest.raises(ValueError, match="one shape"):
        metrics.seam_index(synthetic[1:], target, borders)
    with pytest.raises(ValueError, match="mask is empty"):
        metrics.seam_index(synthetic, target, borders, ~full)


def test_data_range_and_dims_are_checked(pair):
    with pytest.raises(ValueError, match="data_range"):
        metrics.windowed_ssim(*pair, 0)
    with pytest.raises(ValueError, match="data_range"):
        metrics.global_ssim(*pair, -1)
    with pytest.raises(ValueError, match="dims"):
        metrics.windowed_ssim(*pair, 5.0, dims=1)


def test_anatomy_alone_has_no_seam(pair):
    _, target = pair
    locations = tiles(target.shape, 10)
    borders = border_planes(locations, target.shape, (10, 10, 10))
    assert metrics.seam_index(target, None, borders) == pytest.approx(1, abs=0.1)

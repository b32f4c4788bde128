"""Metrics against values worked out by hand, and against what they are meant to tell apart."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from distsynth.metrics import consistency
from distsynth.metrics import image as metrics
from distsynth.metrics.definitions import METRICS
from sharding.volumes.intensities import IntensityTransform


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


def test_literal_ssim_by_hand():
    target = np.array([[[0.0, 2.0]]])
    synthetic = np.array([[[1.0, 5.0]]])
    expected = (2 * 3 * 1 + 0.01) * (2 * 2 + 0.09) / ((9 + 1 + 0.01) + (4 + 1 + 0.09))
    assert metrics.literal_ssim(synthetic, target, 10) == pytest.approx(expected)
    scaled = target / 2
    assert metrics.global_ssim(scaled, scaled, 1) == pytest.approx(1)
    assert metrics.literal_ssim(scaled, scaled, 1) < 0.3


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


TRANSFORM = IntensityTransform(low=0, high=1000, mean=0.4, std=0.2)


def test_volume_metrics_agree_with_their_parts(pair):
    synthetic, target = pair
    mask = target > 0
    values = metrics.volume_metrics(synthetic, target, TRANSFORM, mask)
    assert list(values) == [key for key in METRICS if key.endswith(("_mask", "_whole"))]
    assert values["mse_mask"] == metrics.mse(synthetic, target, mask)
    assert values["psnr_whole"] == metrics.psnr(values["mse_whole"], 5.0)
    assert values["psnr255_mask"] == metrics.psnr(values["mse_mask"], 255)
    scaled = synthetic * 0.2 + 0.4, target * 0.2 + 0.4
    near = partial(pytest.approx, rel=1e-5)
    assert values["ssim_global_mask"] == near(metrics.global_ssim(*scaled, 1.0, mask))
    assert values["ssim_literal_whole"] == near(metrics.literal_ssim(*scaled, 1.0))
    assert values["ssim_mask"] == near(metrics.windowed_ssim(*scaled, 1.0, mask))
    assert values["ssim_whole"] == near(metrics.windowed_ssim(*scaled, 1.0))


def test_ssim_sees_an_offset_only_on_the_scale_of_the_percentiles(pair):
    """On standardised intensities, whose mean is zero, an offset hardly changes luminance."""
    _, target = pair
    brighter = target + 1.0
    scaled = brighter * 0.2 + 0.4, target * 0.2 + 0.4
    here = metrics.volume_metrics(brighter, target, TRANSFORM, target > -99)["ssim_whole"]
    assert here == pytest.approx(metrics.windowed_ssim(*scaled, 1.0), rel=1e-5)
    standardised = metrics.windowed_ssim(brighter, target, TRANSFORM.data_range)
    assert standardised < 0.5 < here < 0.95


@pytest.mark.parametrize(
    "measure",
    [
        metrics.mse,
        lambda a, b, mask: metrics.global_ssim(a, b, 5.0, mask),
        lambda a, b, mask: metrics.windowed_ssim(a, b, 5.0, mask),
        lambda a, b, mask: metrics.volume_metrics(a, b, TRANSFORM, mask),
        consistency.consistency_error,
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


def test_data_range_and_dims_are_checked(pair):
    with pytest.raises(ValueError, match="data_range"):
        metrics.windowed_ssim(*pair, 0)
    with pytest.raises(ValueError, match="data_range"):
        metrics.global_ssim(*pair, -1)
    with pytest.raises(ValueError, match="dims"):
        metrics.windowed_ssim(*pair, 5.0, dims=1)

"""Similarity of gradients, and sharpness beside a target."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from benchmarks.gradient_similarity import (
    STABILITY,
    gradient_magnitude,
    gradient_similarity_deviation,
    relative_sharpness,
)

SHAPE = (20, 22, 24)


@pytest.fixture
def target() -> np.ndarray:
    noise = np.random.default_rng(3).normal(size=SHAPE)
    smooth = gaussian_filter(noise, 2).astype(np.float32)
    return (smooth - smooth.min()) / np.ptp(smooth)


def test_a_ramp_has_its_slope_inside():
    ramp = np.broadcast_to(np.arange(9.0)[:, None, None] * 0.3, (9, 9, 9))
    assert gradient_magnitude(ramp)[4, 4, 4] == pytest.approx(0.3)
    assert gradient_magnitude(ramp, dims=2, axis=0)[4, 4, 4] == pytest.approx(0, abs=1e-6)


def test_deviation_by_hand():
    # Half of the volume a ramp of 0.1 a voxel, half flat; the synthetic volume is flat throughout.
    target = np.zeros((12, 4, 4), np.float32)
    target[6:] = np.arange(6)[:, None, None] * 0.1
    constant = STABILITY / 4
    low = constant / (0.1**2 + constant)
    mask = np.zeros(target.shape, bool)
    mask[2:4] = mask[8:10] = True
    found = gradient_similarity_deviation(np.zeros_like(target), target, mask)
    assert found == pytest.approx((1 - low) / 2, rel=1e-5)


def test_equal_volumes_deviate_by_nothing_and_blur_by_more_the_stronger_it_is(target: np.ndarray):
    assert gradient_similarity_deviation(target, target) == 0
    weak, strong = (gaussian_filter(target, sigma) for sigma in (1.0, 2.0))
    assert gradient_similarity_deviation(weak, target) > 0
    assert gradient_similarity_deviation(weak, target) < gradient_similarity_deviation(
        strong, target
    )


def test_the_mask_is_all_that_is_looked_at(target: np.ndarray):
    mask = np.zeros(SHAPE, bool)
    mask[:8] = True
    spoilt = target.copy()
    spoilt[12:] = 0
    assert gradient_similarity_deviation(spoilt, target, mask) == 0
    assert gradient_similarity_deviation(spoilt, target) > 0
    assert relative_sharpness(spoilt, target, mask) == 1


def test_sharpness_of_blur_is_below_one_and_of_noise_above(target: np.ndarray):
    noise = np.random.default_rng(4).normal(size=SHAPE) * 0.2
    assert relative_sharpness(gaussian_filter(target, 2), target) < 0.8
    assert relative_sharpness(target + noise, target) > 1.2
    assert np.isnan(relative_sharpness(target, np.zeros(SHAPE)))


@pytest.mark.parametrize("measure", [gradient_similarity_deviation, relative_sharpness])
def test_wrong_shapes_and_empty_masks_are_refused(measure, target: np.ndarray):
    with pytest.raises(ValueError, match="one shape"):
        measure(target, target[1:])
    with pytest.raises(ValueError, match="empty"):
        measure(target, target, np.zeros(SHAPE, bool))
    with pytest.raises(ValueError, match="2 or 3"):
        gradient_magnitude(target, dims=1)

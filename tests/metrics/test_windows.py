"""Windows of SSIM against the filters of scipy and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import structural_similarity

from distsynth.metrics import windows as windowed
from distsynth.metrics.image import ssim_map, target_windows, volume_metrics
from distsynth.metrics.windows import BLOCK, SSIM_WINDOW, moments, window_means
from sharding.volumes import slabs
from sharding.volumes.intensities import IntensityTransform

SHAPES = [(11, 11), (13, BLOCK + 1), (11, 12, 13), (2 * BLOCK + 3, 12, 17), (12, BLOCK, 60)]


@pytest.mark.parametrize("shape", SHAPES)
def test_means_are_those_of_a_gaussian_filter_that_reflects(shape):
    values = np.random.default_rng(0).normal(size=shape)
    expected = ndimage.gaussian_filter(values, 1.5, mode="reflect", truncate=3.5)
    np.testing.assert_allclose(window_means(values), expected, rtol=0, atol=1e-14)
    assert window_means(values.astype(np.float32)).dtype == np.float32


def test_any_order_of_an_array_in_memory_gives_the_same():
    values = np.random.default_rng(1).normal(size=(14, 30, 20))
    expected = window_means(values)
    np.testing.assert_array_equal(window_means(np.asfortranarray(values)), expected)
    np.testing.assert_array_equal(window_means(np.repeat(values, 2, 1)[:, ::2]), expected)


def test_moments_of_a_constant_are_itself_and_nothing():
    found = moments(np.full((12, 13, 14), 0.75))
    np.testing.assert_allclose(found.mean, 0.75, rtol=1e-14)
    np.testing.assert_allclose(found.variance, 0, atol=1e-14)


def test_a_side_under_a_window_is_refused():
    with pytest.raises(ValueError, match=r"need 11 voxels along each axis, got \(20, 10, 20\)"):
        window_means(np.zeros((20, SSIM_WINDOW - 1, 20)))


@pytest.mark.parametrize("shape", [(15, 60), (12, 50, 14)])
def test_ssim_is_that_of_scikit_image(shape):
    rng = np.random.default_rng(2)
    target = ndimage.gaussian_filter(rng.random(shape), 1)
    synthetic = target + rng.normal(0, 0.05, shape)
    expected = structural_similarity(
        synthetic,
        target,
        data_range=0.7,
        gaussian_weights=True,
        sigma=windowed.SIGMA,
        use_sample_covariance=False,
        full=True,
    )[1]
    found = (
        ssim_map(synthetic, target, 0.7)
        if len(shape) == 3
        else ssim_map(synthetic[..., None], target[..., None], 0.7, dims=2)[..., 0]
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_shared_windows_of_the_target_change_no_number(monkeypatch):
    """In one tile, and in several whose windows reach into each other."""
    rng = np.random.default_rng(3)
    target = ndimage.gaussian_filter(rng.random((50, 45, 40)), 1).astype(np.float32)
    synthetic = (target + rng.normal(0, 0.05, target.shape)).astype(np.float32)
    transform = IntensityTransform.fit(target, (0.1, 99.9))
    pair = transform.standardise(synthetic), transform.standardise(target)
    mask = target > 0.4
    alone = volume_metrics(*pair, transform, mask)
    for slab in (slabs.SLAB, 2**16):
        monkeypatch.setattr(slabs, "SLAB", slab)
        shared = volume_metrics(*pair, transform, mask, target_windows(pair[1], transform))
        assert shared == pytest.approx(alone, rel=1e-5)
    assert target_windows(pair[1][:, :, :10], transform) is None

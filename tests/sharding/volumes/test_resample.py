"""Resampling: exact on ramps, blurred on coarser axes, inside the source's field of view."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_volumes import noise, ramp, rotated
from scipy import ndimage

import sharding.volumes.resample
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.intensities import IntensityTransform
from sharding.volumes.masks import foreground_mask
from sharding.volumes.pair import place_source
from sharding.volumes.resample import (
    FWHM_TO_SIGMA,
    SPLINE_PAD,
    resample,
    spline_coefficients,
)
from sharding.volumes.volume import Volume

# Resampling


@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_same_grid_returns_the_same_voxels_as_a_copy(order):
    volume = noise()
    same = resample(volume, volume.shape, volume.affine + 1e-9, order)
    np.testing.assert_array_equal(same, volume.data)
    assert not np.shares_memory(same, volume.data)


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "ASR", "ILP", "SAL"])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_flipped_and_permuted_axes_are_undone(orientation, order):
    volume = noise()
    turned = volume.reoriented(orientation)
    back = resample(turned, volume.shape, volume.affine, order)
    np.testing.assert_allclose(back, volume.data, atol=1e-3)


@pytest.mark.parametrize("step", [0.4, 1.0, 2.5])
def test_bands_of_long_axes_give_what_whole_matrices_do(step, monkeypatch):
    volume = noise((30, 26, 22))
    shape = (int(30 / step), int(26 / step) + 3, int(22 / step))
    affine = volume.affine @ np.diag([step, step, step, 1])
    affine[:3, 3] -= 1.3
    whole = resample(volume, shape, affine, 3)
    monkeypatch.setattr(sharding.volumes.resample, "BLOCK", 5)
    np.testing.assert_allclose(resample(volume, shape, affine, 3), whole, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["RAS", "LPI", "ASR", "PIR"]),
    st.tuples(*[st.floats(-40, 40)] * 3),
    st.tuples(*[st.floats(0.3, 1.0)] * 3),
    st.sampled_from([1, 3]),
)
def test_a_linear_ramp_is_exact_on_any_grid_in_the_world(orientation, angles, spacing, order):
    volume = ramp((40, 40, 40), rotated((10, 20, 30), (1, 1.2, 1.1), (3, -4, 5)))
    volume = volume.reoriented(orientation)
    # A grid about the volume's centre, far enough from its faces for the spline's border.
    centre = volume.affine @ [19.5, 19.5, 19.5, 1]
    affine = rotated(angles, spacing, (0, 0, 0))
    affine[:3, 3] = centre[:3] - affine[:3, :3] @ [4.5, 4.5, 4.5]
    found = resample(volume, (10, 10, 10), affine, order)
    np.testing.assert_allclose(found, ramp((10, 10, 10), affine).data, atol=2e-3)


def test_shifted_grids_are_interpolated_between_voxels():
    volume = ramp((10, 10, 10), np.diag([2.0, 2, 2, 1]))
    affine = volume.affine.copy()
    affine[:3, 3] = [1, 0, -1.5]
    found = resample(volume, (9, 10, 10), affine, order=1)
    expected = ramp((9, 10, 10), affine).data
    np.testing.assert_allclose(found[:, :, 1:], expected[:, :, 1:], atol=1e-4)
    np.testing.assert_array_equal(
        found[:, 0, 0], (volume.data[:-1, 0, 0] + volume.data[1:, 0, 0]) / 2
    )


@pytest.mark.parametrize("step", [(0.5, -0.4, 0.77), (1.3, 0.5, -2.5)])
def test_a_grid_along_the_axes_is_interpolated_as_any_other(step, monkeypatch):
    """Also where it leaves the volume, and slab by slab."""
    data = np.random.default_rng(0).random((20, 17, 19)).astype(np.float32)
    shape, offset = (30, 28, 26), np.array([-4.0, 9.3, 12.6])
    monkeypatch.setattr("sharding.volumes.slabs.SLAB", 30 * 28 * 7)
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = offset
    found = resample(Volume(data, np.eye(4)), shape, affine, 3)
    steps = np.abs(step)
    sigma = np.where(steps > 1.01, steps * FWHM_TO_SIGMA, 0)
    blurred = np.asarray(ndimage.gaussian_filter(data, sigma, mode="nearest"), np.float32)
    expected = ndimage.affine_transform(
        spline_coefficients(blurred, 3),
        np.diag(step),  # a matrix, which takes the general way
        (offset + SPLINE_PAD).tolist(),
        output_shape=shape,
        order=3,
        mode="nearest",
        prefilter=False,
    )
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_coarser_grids_are_blurred_first_and_means_are_kept():
    x, y, z = np.indices((32, 32, 32))
    checkers = Volume(((x + y + z) % 2 * 100).astype(np.float32), np.eye(4))
    coarse = np.diag([2.0, 2, 2, 1])
    plain = resample(checkers, (16, 16, 16), coarse, order=0)
    blurred = resample(checkers, (16, 16, 16), coarse, order=1)
    assert plain.std() == 0, "without blurring, every other voxel is all there is"
    assert plain.mean() == 0
    inner = blurred[2:-2, 2:-2, 2:-2]
    assert np.abs(inner - 50).max() < 1
    smooth = ramp((32, 32, 32), np.eye(4))
    found = resample(smooth, (16, 16, 16), coarse, order=1)[3:-3, 3:-3, 3:-3]
    np.testing.assert_allclose(found, ramp((16, 16, 16), coarse).data[3:-3, 3:-3, 3:-3], atol=1e-3)


def test_only_the_coarser_axis_is_blurred():
    volume = noise((16, 16, 16), affine=np.eye(4))
    found = resample(volume, (16, 16, 8), np.diag([1.0, 1, 2, 1]), order=1)
    expected = np.apply_along_axis(
        lambda line: resample(
            Volume(np.broadcast_to(line, (2, 2, 16)).astype(np.float32), np.eye(4)),
            (2, 2, 8),
            np.diag([1.0, 1, 2, 1]),
            order=1,
        )[0, 0],
        2,
        volume.data,
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


# Placing a source on a grid


def test_inside_is_the_sources_field_of_view():
    source = noise((10, 10, 10), affine=np.eye(4))
    affine = np.eye(4)
    affine[:3, 3] = [-3, 2, 0]
    placed = place_source(source, (16, 12, 10), affine, PreprocessConfig())
    expected = np.zeros((16, 12, 10), bool)
    expected[3:13, 0:8, :] = True
    np.testing.assert_array_equal(placed.inside, expected)
    assert (placed.scaled[~expected] == 0).all()
    scaled = placed.transform.scale(source.data)
    np.testing.assert_allclose(placed.scaled[3:13, 0:8], scaled[:, 2:], atol=1e-6)
    assert placed.native is source


def test_borders_of_voxels_count_as_inside():
    source = noise((4, 4, 4), affine=np.diag([2.0, 2, 2, 1]))
    fine = np.eye(4)
    fine[:3, 3] = -0.5
    placed = place_source(source, (8, 8, 8), fine, PreprocessConfig())
    assert placed.inside.all(), "eight fine voxels fill the four coarse ones"
    fine[:3, 3] = -1.6
    assert not place_source(source, (8, 8, 8), fine, PreprocessConfig()).inside[0].any()


def test_the_sources_transform_does_not_depend_on_the_grid():
    source = noise()
    config = PreprocessConfig()
    first = place_source(source, (5, 5, 5), np.eye(4), config).transform
    assert first == place_source(source, source.shape, source.affine, config).transform
    assert first == IntensityTransform.fit(source.data, config.clip_percentiles)


def test_overshoot_of_the_spline_stays_within_the_range():
    data = np.zeros((12, 12, 12), np.float32)
    data[6:] = 100
    grid = np.diag([0.3, 1, 1, 1.0])
    volume = Volume(data, np.eye(4))
    assert resample(volume, (38, 12, 12), grid, order=3).max() > 101
    scaled = place_source(volume, (38, 12, 12), grid, PreprocessConfig()).scaled
    assert (scaled.min(), scaled.max()) == (0, 1)


def test_foreground_fills_enclosed_holes():
    scaled = np.zeros((9, 9, 9), np.float32)
    scaled[1:8, 1:8, 1:8] = 0.5
    scaled[3:5, 3:5, 3:5] = 0  # a ventricle
    scaled[0, 0, 0] = 0.04
    mask = foreground_mask(scaled, 0.05)
    assert mask.dtype == bool
    assert mask.sum() == 7**3

"""The seam index against planted seams, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from distsynth.inference.stitching import border_planes
from distsynth.metrics import seams
from sharding.shards.patches import dense_locations, window


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
        assert seams.seam_index(target + error, target, borders) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("size", [(12, 12, 12), (12, 12)])
def test_seam_index_rises_with_an_offset_of_each_patch(rng, size):
    shape = (36, 36, 24)
    locations = dense_locations(shape, size, 12, (2,))
    borders = border_planes(locations, shape, size)
    target = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    target /= target.std()
    error = 0.1 * rng.normal(size=shape)
    calm = seams.seam_index(target + error, target, borders)
    for axis, *corner in locations.tolist():
        error[window(size, axis, corner)] += 0.3 * rng.normal()
    index = seams.seam_index(target + error, target, borders)
    assert calm < 1.05
    assert index > 2
    mask = np.zeros(shape, bool)
    mask[4:30, 4:30, 4:20] = True
    assert seams.seam_index(target + error, target, borders, mask) > 1.5
    assert 1.05 < seams.seam_index(target + error, None, borders) < index


def test_seam_index_by_hand():
    error = np.zeros((6, 1, 1))
    error[:, 0, 0] = [0, 1, 2, 5, 6, 7]
    borders = [np.array([3]), np.array([], int), np.array([], int)]
    assert seams.seam_index(error, np.zeros_like(error), borders) == pytest.approx(3)


def test_seam_index_at_its_ends(pair):
    _, target = pair
    none = [np.array([], int)] * 3
    some = [np.array([8, 16]), np.array([10]), np.array([], int)]
    every = [np.arange(1, size) for size in target.shape]
    assert math.isnan(seams.seam_index(target, target, none))
    assert math.isnan(seams.seam_index(target, None, every))
    assert seams.seam_index(target, target, some) == 1
    step = target.copy()
    step[8:] += 1
    assert seams.seam_index(np.round(step - target), np.zeros_like(target), some) == math.inf
    with pytest.raises(ValueError, match="borders along axis 0"):
        seams.seam_index(target, target, [np.array([24]), *none[1:]])


def test_seam_index_refuses_wrong_shapes_and_empty_masks(pair):
    synthetic, target = pair
    borders = [np.array([8])] * 3
    full = np.ones(target.shape, bool)
    with pytest.raises(ValueError, match="one shape"):
        seams.seam_index(synthetic[1:], target, borders)
    with pytest.raises(ValueError, match="mask is empty"):
        seams.seam_index(synthetic, target, borders, ~full)


def test_anatomy_alone_has_no_seam(pair):
    _, target = pair
    locations = tiles(target.shape, 10)
    borders = border_planes(locations, target.shape, (10, 10, 10))
    assert seams.seam_index(target, None, borders) == pytest.approx(1, abs=0.1)

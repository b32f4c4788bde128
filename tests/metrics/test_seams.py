"""The seam index against planted seams, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from artefacts import lattice, paper_borders, smooth_error, steps, stripes
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
        assert seams.seam_index(target + error, target, borders) == pytest.approx(1, abs=0.07)


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


def test_seams_by_hand():
    error = np.zeros((10, 1, 1))
    # Jumps of 1, 1, 1, 1, 3, 1, 1, 1, 2: the border at 5 is compared with the planes 1 and 9.
    error[:, 0, 0] = [0, 1, 2, 3, 4, 7, 8, 9, 10, 12]
    borders = [np.array([5]), np.array([], int), np.array([], int)]
    mask = np.ones(error.shape, bool)
    mask[9] = False
    whole, inside, outside = seams.seams(error, None, borders, (None, mask, ~mask))
    assert (whole.index, whole.excess) == pytest.approx((3 / 1.5, math.sqrt(9 - 2.5)))
    assert (inside.index, inside.excess) == pytest.approx((3, math.sqrt(9 - 1)))
    assert math.isnan(outside.index)
    assert math.isnan(outside.excess)
    assert seams.seam_index(error, np.zeros_like(error), borders, mask) == inside.index
    smoother = error.copy()
    smoother[5:] -= 3
    (found,) = seams.seams(smoother, None, borders, (mask,))
    assert found == seams.Seams(0, -1)


@pytest.mark.parametrize("period", [2, 4])
def test_a_pattern_of_the_strides_without_any_noise_is_no_seam(period):
    borders = [np.array([8, 12, 24]), np.array([], int), np.array([], int)]
    error = np.where(np.arange(40) % period == 0, 1.0, 0)[:, None, None]
    (found,) = seams.seams(error, None, borders)
    assert (found.index, found.excess) == pytest.approx((1, 0))


# The measures against planted artefacts: docs/seams.md has the curves.


@pytest.mark.parametrize("trim", [0, 4])
def test_both_measures_rise_with_planted_steps_and_the_excess_tells_their_size(rng, trim):
    borders, calm = paper_borders(trim), smooth_error(rng)
    sizes = (0.0, 0.03, 0.06, 0.12, 0.25)
    found = [seams.seams(calm + steps(borders, size), None, borders)[0] for size in sizes]
    indices, excesses = ([getattr(row, name) for row in found] for name in ("index", "excess"))
    assert indices == sorted(indices)
    assert indices[0] == pytest.approx(1, abs=0.02)
    assert indices[2] > 1.05
    assert indices[-1] > 2
    assert excesses == sorted(excesses)
    assert excesses[2:] == pytest.approx(sizes[2:], rel=0.15)


def test_noise_hides_steps_from_the_index_and_not_from_the_excess(rng):
    borders = paper_borders()
    stepped = smooth_error(rng) + steps(borders, 0.25)
    noise = rng.normal(size=stepped.shape)
    found = [seams.seams(stepped + size * noise, None, borders)[0] for size in (0, 0.25, 0.5, 1)]
    assert found[0].index > 2
    assert found[-1].index < 1.05
    assert [row.excess for row in found] == pytest.approx([0.25] * 4, rel=0.25)


@pytest.mark.parametrize(
    "error",
    [
        lambda rng: smooth_error(rng) + stripes(4, 0.2),
        lambda rng: smooth_error(rng) + stripes(2, 0.2),
        lambda rng: smooth_error(rng) + lattice(0.4),
        lambda rng: ndimage.gaussian_filter(smooth_error(rng), 2),
        lambda rng: rng.normal(size=stripes(4, 0).shape),
    ],
    ids=["stripes of 4", "stripes of 2", "lattice", "blur", "noise"],
)
@pytest.mark.parametrize("trim", [0, 4, 8])
def test_nothing_but_a_seam_reads_as_one(rng, error, trim):
    """To 0.03 of the index; an excess within 0.3 of the mean jump."""
    volume = error(rng)
    (found,) = seams.seams(volume, None, paper_borders(trim))
    assert found.index == pytest.approx(1, abs=0.03)
    jump = np.abs(np.diff(volume, axis=0)).mean()
    assert abs(found.excess) < 0.3 * jump


def test_seams_on_the_background_are_seen_outside_alone(rng):
    borders, calm = paper_borders(), smooth_error(rng)
    mask = np.zeros(calm.shape, bool)
    mask[25:90, 20:85, 8:40] = True
    volume = calm + np.where(mask, 0, steps(borders, 0.25))
    inside, outside = seams.seams(volume, None, borders, (mask, ~mask))
    assert inside.index == pytest.approx(1, abs=0.06)
    assert outside.index > 2
    assert outside.excess == pytest.approx(0.25, rel=0.1)


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
    with pytest.raises(ValueError, match="three axes, got 2"):
        seams.seams(synthetic, target, borders[:2])


def test_anatomy_alone_has_no_seam(pair):
    _, target = pair
    locations = tiles(target.shape, 10)
    borders = border_planes(locations, target.shape, (10, 10, 10))
    assert seams.seam_index(target, None, borders) == pytest.approx(1, abs=0.1)

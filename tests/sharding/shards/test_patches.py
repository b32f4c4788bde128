"""Patch locations: dense ones cover every voxel, random ones lie inside, cuts are exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.shards.patches import (
    BLOCK,
    check_fits,
    cut,
    cut_channels,
    dense_locations,
    extend_volume,
    extended,
    extent,
    patch_axes,
    random_locations,
    window,
)

AXES = st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=3, unique=True)


@st.composite
def volumes_and_patches(draw):
    size = tuple(draw(st.lists(st.integers(2, 6), min_size=2, max_size=3)))
    shape = draw(st.tuples(*[st.integers(max(size), 13)] * 3))
    return shape, size


@settings(max_examples=150, deadline=None)
@given(volumes_and_patches(), AXES, st.data())
def test_a_dense_grid_covers_every_voxel_along_each_axis(case, axes, data):
    shape, size = case
    stride = data.draw(st.integers(1, min(size)))
    locations = dense_locations(shape, size, stride, axes)
    assert locations.dtype == np.int32
    assert len(np.unique(locations, axis=0)) == len(locations)
    assert list(dict.fromkeys(locations[:, 0].tolist())) == list(patch_axes(size, axes))
    for chosen in patch_axes(size, axes):
        covered = np.zeros(shape, int)
        for axis, *corner in locations.tolist():
            if axis == chosen:
                place = window(size, axis, corner)
                assert all(part.stop <= side for part, side in zip(place, shape, strict=True))
                covered[place] += 1
        assert covered.min() >= 1


def test_dense_order_is_by_axis_then_slice():
    locations = dense_locations((8, 6, 4), (4, 4), 2, (2, 0))
    assert locations[:, 0].tolist() == [2] * 4 * 3 * 2 + [0] * 8 * 2
    assert (np.diff(locations[:24, 3]) >= 0).all()
    assert (np.diff(locations[24:, 1]) >= 0).all()
    assert locations[:6].tolist() == [[2, x, y, 0] for x in (0, 2, 4) for y in (0, 2)]


@given(st.integers(4, 40), st.integers(0, 45))
def test_slices_are_distinct_and_evenly_spaced(size, slices):
    locations = dense_locations((4, 4, size), (4, 4), 4, (2,), slices)
    chosen = locations[:, 3].tolist()
    assert len(set(chosen)) == len(chosen) == (min(slices, size) or size)
    assert np.ptp(np.diff(chosen)) <= 1 if len(chosen) > 1 else 0 <= chosen[0] < size


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_leaves_gaps_is_refused(stride):
    with pytest.raises(ValueError, match=rf"from 1 to the patch side 4, got {stride}: a larger"):
        dense_locations((9, 9, 9), (6, 4), stride, (2,))


@pytest.mark.parametrize(
    ("size", "axis"), [((10, 4), 2), ((4, 10), 2), ((10, 4), 1), ((4, 4, 10), BLOCK)]
)
def test_patches_larger_than_the_volume_are_refused(size, axis):
    named = rf"{'x'.join(map(str, size))} cut along axis {axis} .* volume of 9x9x9 voxels"
    with pytest.raises(ValueError, match=named):
        check_fits((9, 9, 9), size, axis)
    with pytest.raises(ValueError, match=named):
        dense_locations((9, 9, 9), size, 2, (axis,))
    with pytest.raises(ValueError, match=named):
        random_locations(np.ones((9, 9, 9), bool), size, 3, (axis,), 1, np.random.default_rng())


def test_an_axis_must_suit_the_patch():
    assert extent((5, 6), 1) == (5, 1, 6)
    assert extent((5, 6, 7), BLOCK) == (5, 6, 7)
    assert patch_axes((5, 6, 7), (0, 1)) == (BLOCK,)
    with pytest.raises(ValueError, match="slicing axis of 0, 1, 2, got -1"):
        extent((5, 6), BLOCK)
    with pytest.raises(ValueError, match="3D patch has axis -1, got 2"):
        extent((5, 6, 7), 2)


@settings(max_examples=100, deadline=None)
@given(volumes_and_patches(), AXES, st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_random_patches_lie_inside_and_share_the_axes(case, axes, count, foreground, seed):
    shape, size = case
    mask = np.random.default_rng(seed).random(shape) < 0.2
    mask[0, 0, 0] = True
    rng = np.random.default_rng(seed)
    locations = random_locations(mask, size, count, axes, foreground, rng)
    assert locations.shape == (count, 4)
    for axis, *corner in locations.tolist():
        ends = np.add(corner, extent(size, axis))
        assert min(corner) >= 0
        assert (ends <= shape).all()
    dealt = [locations[:, 0].tolist().count(axis) for axis in patch_axes(size, axes)]
    assert sum(dealt) == count
    assert max(dealt) - min(dealt) <= 1
    again = random_locations(mask, size, count, axes, foreground, np.random.default_rng(seed))
    np.testing.assert_array_equal(locations, again)


@pytest.mark.parametrize("size", [(4, 6), (5, 5), (4, 4, 6)])
def test_foreground_one_centres_every_patch_on_the_mask(size):
    mask = np.zeros((30, 30, 30), bool)
    mask[10:13, 20, 8] = mask[15, 15, 15] = True
    locations = random_locations(mask, size, 60, (0, 1, 2), 1.0, np.random.default_rng(0))
    centres = {
        tuple(np.add(corner, np.array(extent(size, axis)) // 2).tolist())
        for axis, *corner in locations.tolist()
    }
    assert all(mask[centre] for centre in centres)
    assert len(centres) == mask.sum(), "every foreground voxel is drawn sooner or later"


def test_centres_at_the_faces_are_moved_inwards():
    mask = np.zeros((9, 9, 9), bool)
    mask[0, 0, 0] = mask[8, 8, 8] = True
    locations = random_locations(mask, (4, 4), 40, (2,), 1.0, np.random.default_rng(0))
    assert {tuple(row) for row in locations.tolist()} == {(2, 0, 0, 0), (2, 5, 5, 8)}


def test_foreground_is_the_share_asked_for():
    mask = np.zeros((40, 40, 40), bool)
    mask[20, 20, 20] = True
    locations = random_locations(mask, (4, 4), 1000, (2,), 0.3, np.random.default_rng(0))
    hits = (locations == [2, 18, 18, 20]).all(axis=1).mean()
    assert 0.25 < hits < 0.35


def test_an_empty_mask_is_refused_only_if_foreground_is_asked_for():
    mask = np.zeros((9, 9, 9), bool)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="no foreground voxel"):
        random_locations(mask, (4, 4), 3, (2,), 0.1, rng)
    assert len(random_locations(mask, (4, 4), 3, (2,), 0.0, rng)) == 3


@pytest.mark.parametrize(
    ("shape", "size"), [((9, 11, 13), (4, 6)), ((8, 9, 11), (6, 4, 8))], ids=str
)
@pytest.mark.parametrize("axes", [(2,), (0, 1, 2)], ids=str)
def test_aligned_patches_start_at_multiples_and_cover_the_extended_volume(shape, size, axes):
    whole = extended(shape, 2)
    assert all(0 <= far - near < 2 and far % 2 == 0 for near, far in zip(shape, whole, strict=True))
    volume = np.random.default_rng(0).random(shape)
    longer = extend_volume(volume, 2)
    assert longer.shape == whole
    np.testing.assert_array_equal(longer, np.pad(volume, [(0, n % 2) for n in shape], mode="edge"))
    mask = np.ones(shape, bool)
    rng = np.random.default_rng(0)
    for locations in (
        random_locations(mask, size, 200, axes, 0.5, rng, alignment=2),
        dense_locations(shape, size, 2, axes, alignment=2),
    ):
        for axis in patch_axes(size, axes):
            corners = locations[locations[:, 0] == axis, 1:]
            ends = corners + extent(size, axis)
            for dim in range(3):
                if dim == axis:
                    assert ends[:, dim].max() == shape[dim]
                else:
                    assert (corners[:, dim] % 2 == 0).all()
                    assert ends[:, dim].max() == whole[dim]
    with pytest.raises(ValueError, match="divisible by the alignment of 3"):
        dense_locations(shape, size, 3, axes, alignment=3)


@settings(max_examples=80, deadline=None)
@given(volumes_and_patches(), AXES, st.integers(0, 2**32 - 1))
def test_cut_returns_the_voxels_at_the_location(case, axes, seed):
    shape, size = case
    rng = np.random.default_rng(seed)
    volume = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    locations = random_locations(volume >= 0, size, 7, axes, 0.5, rng)
    patches = cut(volume, size, locations)
    assert patches.shape == (7, *size)
    assert patches.dtype == volume.dtype
    for patch, (axis, *corner) in zip(patches, locations.tolist(), strict=True):
        for inner in np.ndindex(*size):
            place = list(inner)
            if axis != BLOCK:
                place.insert(axis, 0)
            assert patch[inner] == volume[tuple(np.add(corner, place))]


@settings(max_examples=80, deadline=None)
@given(volumes_and_patches(), AXES, st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_channels_are_the_slices_around_the_patch(case, axes, neighbours, seed):
    shape, size = case
    size = size[:2]
    rng = np.random.default_rng(seed)
    volume = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    locations = random_locations(volume >= 0, size, 7, axes, 0.5, rng)
    before = locations.copy()
    patches = cut_channels(volume, size, locations, neighbours)
    assert patches.shape == (7, 1 + 2 * neighbours, *size)
    assert patches.dtype == volume.dtype
    np.testing.assert_array_equal(patches[:, neighbours], cut(volume, size, locations))
    np.testing.assert_array_equal(locations, before)
    # By another way: a volume whose outermost slices are repeated.
    for axis in axes:
        pad = [(neighbours, neighbours) if dim == axis else (0, 0) for dim in range(3)]
        wide = np.pad(volume, pad, mode="edge")
        for patch, row in zip(patches, locations.tolist(), strict=True):
            if row[0] == axis:
                part = [slice(low, low + side) for low, side in zip(row[1:], shape, strict=True)]
                across = [dim for dim in range(3) if dim != axis]
                for dim, side in zip(across, size, strict=True):
                    part[dim] = slice(row[1 + dim], row[1 + dim] + side)
                part[axis] = slice(row[1 + axis], row[1 + axis] + 1 + 2 * neighbours)
                expected = np.moveaxis(wide[tuple(part)], axis, 0)
                np.testing.assert_array_equal(patch, expected)


@pytest.mark.parametrize("size", [(4, 5), (4, 5, 3)])
def test_without_neighbours_there_is_one_channel(size):
    volume = np.arange(9**3).reshape(9, 9, 9)
    locations = dense_locations((9, 9, 9), size, 3, (0, 2))
    np.testing.assert_array_equal(
        cut_channels(volume, size, locations, 0)[:, 0], cut(volume, size, locations)
    )


def test_beyond_the_faces_the_outermost_slice_is_repeated():
    volume = np.zeros((5, 4, 4), int) + np.arange(5)[:, None, None]
    locations = np.array([[0, 0, 0, 0], [0, 4, 0, 0], [0, 2, 0, 0]], np.int32)
    channels = cut_channels(volume, (4, 4), locations, 2)[:, :, 0, 0]
    assert channels.tolist() == [[0, 0, 0, 1, 2], [2, 3, 4, 4, 4], [0, 1, 2, 3, 4]]


def test_blocks_have_no_neighbours():
    locations = np.array([[BLOCK, 0, 0, 0]], np.int32)
    with pytest.raises(ValueError, match="only patches of two sides have neighbouring slices"):
        cut_channels(np.zeros((9, 9, 9)), (4, 4, 4), locations, 1)

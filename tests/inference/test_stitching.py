"""Stitching returns what was cut, refuses gaps and knows where borders lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distsynth.inference.stitching import Stitcher, border_planes, smooth_window
from sharding.shards.patches import BLOCK, cut, dense_locations, window


@st.composite
def cases(draw):
    """A volume, a patch size, axes, a stride, a trim that leaves no gaps, weights."""
    size = draw(st.lists(st.integers(3, 8), min_size=2, max_size=3))
    low = max(size)
    shape = draw(st.tuples(*[st.integers(low, low + 7)] * 3))
    axes = draw(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=3, unique=True))
    trim = draw(st.integers(0, (min(size) - 1) // 2))
    stride = draw(st.integers(1, min(size) - 2 * trim))
    weights = draw(st.sampled_from(["uniform", "smooth"]))
    scale = draw(st.sampled_from([1e-6, 1.0, 1e6]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    volume = (rng.normal(size=shape) * scale).astype(np.float32)
    return volume, size, axes, stride, trim, weights


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(cases(), st.integers(1, 50))
def test_dense_patches_stitch_back_exactly(case, batch):
    volume, size, axes, stride, trim, weights = case
    locations = dense_locations(volume.shape, size, stride, axes)
    patches = torch.from_numpy(cut(volume, size, locations))
    stitcher = Stitcher(volume.shape, size, trim, weights)
    for start in range(0, len(locations), batch):
        part = slice(start, start + batch)
        stitcher.add(patches[part], locations[part])
    assert stitcher.covered.all()
    assert stitcher.volume().dtype == torch.float32
    np.testing.assert_array_equal(stitcher.volume().numpy(), volume)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_borders_are_where_the_set_of_patches_changes(case):
    volume, size, axes, stride, trim, _ = case
    shape = volume.shape
    locations = dense_locations(shape, size, stride, axes)
    expected: list[set[int]] = [set(), set(), set()]
    for axis, *corner in locations.tolist():
        for dim, place in enumerate(window(size, axis, corner)):
            if dim != axis:
                expected[dim] |= {place.start + trim} if place.start > 0 else set()
                expected[dim] |= {place.stop - trim} if place.stop < shape[dim] else set()
    found = border_planes(locations, shape, size, trim)
    assert [planes.tolist() for planes in found] == [sorted(planes) for planes in expected]


def test_overlaps_are_averaged():
    locations = np.array([[2, 0, 0, 0], [2, 0, 2, 0]], np.int32)
    stitcher = Stitcher((4, 6, 1), (4, 4))
    stitcher.add(torch.stack([torch.full((4, 4), 1.0), torch.full((4, 4), 4.0)]), locations)
    assert stitcher.volume()[0, :, 0].tolist() == [1, 1, 2.5, 2.5, 4, 4]


def test_trim_spares_the_faces_and_the_slicing_axis():
    locations = np.array([[1, 0, 3, 4]], np.int32)
    stitcher = Stitcher((10, 5, 10), (6, 6), trim=2)
    stitcher.add(torch.ones(1, 6, 6), locations)
    expected = torch.zeros(10, 5, 10, dtype=torch.bool)
    expected[0:4, 3, 6:10] = True
    assert torch.equal(stitcher.covered, expected)


def test_uncovered_voxels_raise_and_are_nan_on_request():
    locations = np.array([[BLOCK, 0, 0, 0]], np.int32)
    stitcher = Stitcher((4, 4, 5), (4, 4, 4))
    stitcher.add(torch.ones(1, 4, 4, 4), locations)
    with pytest.raises(ValueError, match=r"16 of 80 voxels .* \(0, 0, 4\): use a smaller stride"):
        stitcher.volume()
    volume = stitcher.volume(allow_uncovered=True)
    assert volume[..., 4].isnan().all()
    assert (volume[..., :4] == 1).all()


def test_trim_larger_than_the_overlap_leaves_gaps():
    volume = np.zeros((16, 16, 2), np.float32)
    locations = dense_locations(volume.shape, (8, 8), 4, (2,))
    stitcher = Stitcher(volume.shape, (8, 8), trim=3)
    stitcher.add(torch.from_numpy(cut(volume, (8, 8), locations)), locations)
    with pytest.raises(ValueError, match="lie in no patch"):
        stitcher.volume()


def test_sums_of_ranks_add_up():
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(9, 8, 7)).astype(np.float32)
    locations = dense_locations(volume.shape, (5, 5), 3, (0, 2))
    patches = torch.from_numpy(cut(volume, (5, 5), locations))
    ranks = [Stitcher(volume.shape, (5, 5), 1, "smooth") for _ in range(2)]
    for rank, stitcher in enumerate(ranks):
        stitcher.add(patches[rank::2], locations[rank::2])
    ranks[0].total += ranks[1].total
    ranks[0].weight += ranks[1].weight
    np.testing.assert_array_equal(ranks[0].volume().numpy(), volume)


def test_half_precision_patches_are_accepted():
    stitcher = Stitcher((4, 4, 1), (4, 4))
    stitcher.add(
        torch.full((1, 4, 4), 0.5, dtype=torch.bfloat16), np.array([[2, 0, 0, 0]], np.int32)
    )
    assert (stitcher.volume() == 0.5).all()


def test_smooth_window_is_positive_and_fades_to_the_trimmed_border():
    weights = smooth_window((8, 10, 6), trim=2)
    assert weights.shape == (8, 10, 6)
    assert weights.min() > 0
    row = weights[:, 5, 3] / weights[:, 5, 3].max()
    np.testing.assert_allclose(
        row[2:6],
        np.sin(np.pi * np.array([0.5, 1.5, 2.5, 3.5]) / 4) ** 2 / np.sin(np.pi * 1.5 / 4) ** 2,
    )
    assert row[0] == row[1] == row[2]


def test_slice_axis_has_no_borders():
    locations = dense_locations((12, 12, 4), (8, 8), 4, (2,))
    planes = border_planes(locations, (12, 12, 4), (8, 8), trim=1)
    assert [axis.tolist() for axis in planes] == [[5, 7], [5, 7], []]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trim": 4}, "trim must be"),
        ({"trim": -1}, "trim must be"),
        ({"weights": "gauss"}, "weights must be"),
        ({"patch_size": (8,)}, "two or three"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        Stitcher(**{"shape": (9, 9, 9), "patch_size": (8, 8), **change})


@pytest.mark.parametrize("corner", [[-1, 0, 0], [2, 0, 0], [0, 0, 9]])
def test_patches_outside_the_volume_raise(corner):
    stitcher = Stitcher((9, 9, 9), (8, 8))
    with pytest.raises(ValueError, match="leaves the volume"):
        stitcher.add(torch.zeros(1, 8, 8), np.array([[2, *corner]], np.int32))


def test_shapes_must_agree():
    stitcher = Stitcher((9, 9, 9), (8, 8))
    with pytest.raises(ValueError, match="patches must have shape"):
        stitcher.add(torch.zeros(1, 1, 8, 8), np.array([[2, 0, 0, 0]], np.int32))
    with pytest.raises(ValueError, match="locations must have shape"):
        stitcher.add(torch.zeros(1, 8, 8), np.array([[0, 0, 0]], np.int32))

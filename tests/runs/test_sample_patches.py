from __future__ import annotations

import numpy as np
import pytest

from distsynth.runs.sample_patches import TITLE_HEIGHT, TITLES, _titles, patch_grid


@pytest.mark.parametrize("shape", [(2, 8, 6), (2, 5, 8, 6)])
def test_a_row_shows_source_synthetic_target_change_and_error(shape):
    target = np.random.default_rng(0).normal(size=shape)
    source, synthetic = np.zeros(shape), target.copy()
    middle = (0, 2) if len(shape) == 4 else (0,)
    source[middle][3, 2], source[middle][5, 4] = target[middle][3, 2] - 5, target[middle][5, 4] + 5
    picture = patch_grid(source, synthetic, target)
    side = (picture.shape[0] - TITLE_HEIGHT) // 16
    assert picture.shape == (TITLE_HEIGHT + 2 * 8 * side, 5 * 6 * side, 3)
    assert picture.dtype == np.uint8

    def voxel(column, y, x):
        return picture[TITLE_HEIGHT + side * y + 1, side * (6 * column + x) + 1].astype(int)

    blue, red = voxel(3, 3, 2), voxel(3, 5, 4)
    assert blue[2] > blue[0] + 50
    assert red[0] > red[2] + 50
    # Synthetic is the target here: no error, the same greys.
    error = picture[TITLE_HEIGHT:, side * 24 :]
    assert (error == error[0, 0]).all()
    greys = picture[TITLE_HEIGHT:, : side * 18]
    assert np.array_equal(greys[..., 0], greys[..., 1])
    assert np.array_equal(greys[:, side * 6 : side * 12], greys[:, side * 12 :])
    # A patch without contrast must not divide by zero.
    patch_grid(source, source, source)


@pytest.mark.parametrize("width", [4, 32, 64, 300])
def test_every_column_has_its_title_within_its_width(width):
    patches = np.zeros((1, 4, width))
    picture = patch_grid(patches, patches, patches)
    strip = picture[:TITLE_HEIGHT]
    assert np.array_equal(strip, _titles(picture.shape[1] // len(TITLES)))
    found = np.split(strip, len(TITLES), axis=1)
    for column, (_, detail) in zip(found, TITLES, strict=True):
        dark = (column < 200).all(axis=2)
        assert dark[:18].any()
        assert dark[22:].any() == bool(detail)
        # Nothing is cut off at the right.
        assert not dark[:, -2:].any()
    assert len({column.tobytes() for column in found}) == len(TITLES)

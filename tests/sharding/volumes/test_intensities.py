"""Pairs: intensities go there and back, world coordinates are respected, misfits are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_volumes import noise

from sharding.volumes.cohort import Specimen
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.intensities import IntensityTransform
from sharding.volumes.pair import prepare_pair
from sharding.volumes.volume import Volume, write_volume

# Intensities


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(-1e4, 1e4), st.floats(1e-2, 1e5))
def test_intensities_come_back_within_the_percentiles(seed, shift, scale):
    data = np.random.default_rng(seed).normal(size=(9, 8, 7)).astype(np.float32)
    data = (data * scale + shift).astype(np.float32)
    if np.ptp(data) < 1e-3 * np.abs(data).max():
        return  # Nothing but rounding is left.
    transform = IntensityTransform.fit(data, (1, 99))
    standard = transform.standardise(data)
    assert standard.dtype == np.float32
    assert standard.mean() == pytest.approx(0, abs=1e-3)
    assert standard.std() == pytest.approx(1, abs=1e-3)
    clipped = np.clip(data, transform.low, transform.high)
    tolerance = 1e-5 * (transform.high - transform.low) + 1e-6 * np.abs(data).max()
    np.testing.assert_allclose(transform.restore(standard), clipped, atol=tolerance)


def test_percentiles_are_clipped_and_scaled_to_one():
    data = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    transform = IntensityTransform.fit(data, (0.1, 99.9))
    assert (transform.low, transform.high) == pytest.approx((1, 999))
    scaled = transform.scale(data)
    assert (scaled.min(), scaled.max()) == (0, 1)
    assert scaled.flat[500] == pytest.approx(0.5)
    assert (scaled == 0).sum() == (scaled == 1).sum() == 2
    assert np.ptp(transform.standardise(data)) == pytest.approx(transform.data_range, rel=1e-6)
    np.testing.assert_array_equal(
        transform.standardise(data), transform.standardise_scaled(transform.scale(data))
    )


def test_new_voxels_are_clipped_by_the_fitted_range():
    transform = IntensityTransform(low=10, high=30, mean=0.25, std=0.5)
    data = np.array([-1e6, 10, 20, 30, 1e6], np.float32)
    assert transform.scale(data).tolist() == [0, 0, 0.5, 1, 1]
    assert transform.standardise(data).tolist() == [-0.5, -0.5, 0.5, 1.5, 1.5]
    assert transform.restore(transform.standardise(data)).tolist() == [10, 10, 20, 30, 30]
    assert transform.data_range == 2


def test_nearly_constant_volumes_are_refused(tmp_path, refused):
    data = np.zeros((20, 20, 20), np.float32)
    data[0, 0, 0] = 1
    with pytest.raises(ValueError, match=r"0\.1 and 99\.9 percentiles must differ, both are 0"):
        IntensityTransform.fit(data, (0.1, 99.9))
    write_volume(tmp_path / "flat.nii.gz", Volume(data, np.eye(4)))
    write_volume(tmp_path / "good.nii.gz", noise((20, 20, 20), affine=np.eye(4)))
    for files in (("flat", "good"), ("good", "flat")):
        target, source = (tmp_path / f"{name}.nii.gz" for name in files)
        with refused("flat.nii.gz", "percentiles must differ", "Crop the empty space"):
            prepare_pair(Specimen("a", target, source), PreprocessConfig())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip_percentiles", (99, 1)),
        ("clip_percentiles", (-1, 99)),
        ("foreground_threshold", 1.0),
        ("foreground_threshold", float("nan")),
        ("min_overlap", 0.0),
        ("min_overlap", 1.5),
    ],
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        PreprocessConfig(**{field: value})

"""One prediction under many conventions, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distsynth.metrics.conventions import COLUMNS, Convention, conventional_values
from distsynth.metrics.image import global_ssim, windowed_ssim
from sharding.volumes.intensities import IntensityTransform

# Percentiles 10 and 110 of intensities from 0 to 200; standardised = (unit - 0.5) / 0.25.
TRANSFORM = IntensityTransform(low=10, high=110, mean=0.5, std=0.25)


def db(peak, error):
    return 20 * math.log10(peak) - 10 * math.log10(error)


@pytest.fixture
def by_hand():
    """Two slices of two voxels, of which the mask leaves out one; intensities of the file."""
    target = np.array([[[0.0, 60.0], [200.0, 110.0]]], np.float32)
    synthetic = np.array([[[10.0, 60.0], [110.0, 160.0]]], np.float32)
    mask = np.array([[[True, True], [False, True]]])
    standardised = ((synthetic - 10) / 100 - 0.5) / 0.25
    return conventional_values(standardised, target, TRANSFORM, mask)


def test_all_conventions_have_all_columns(by_hand):
    assert len(by_hand) == 4 * 2 * 2
    assert all(tuple(row) == tuple(COLUMNS) for row in by_hand.values())
    assert math.isnan(by_hand[Convention("min-max", "whole", "volume")]["ssim_windowed"])


def test_standardised(by_hand):
    # The target is clipped to 10 and 110: errors in units are 0, 0, 0, 0.5, and four times that.
    row = by_hand[Convention("standardised", "whole", "volume")]
    assert row["psnr_1"] == pytest.approx(db(1, 4 / 4))
    assert row["psnr_255"] == pytest.approx(db(255, 4 / 4))
    assert row["psnr_range"] == pytest.approx(db(4, 4 / 4))
    assert row["psnr_maximum"] == pytest.approx(db(2, 4 / 4))
    assert by_hand[Convention("standardised", "mask", "volume")]["psnr_1"] == pytest.approx(
        db(1, 4 / 3)
    )


def test_percentiles_clip_both(by_hand):
    row = by_hand[Convention("percentiles", "whole", "volume")]
    # 160 is clipped to 110 as well.
    assert row["psnr_1"] == row["psnr_255"] == math.inf


def test_min_max(by_hand):
    errors = np.array([10, 0, 90, 50]) / 200
    row = by_hand[Convention("min-max", "whole", "volume")]
    assert row["psnr_1"] == pytest.approx(db(1, np.mean(errors**2)), rel=1e-5)
    assert row["psnr_range"] == row["psnr_maximum"] == pytest.approx(row["psnr_1"], rel=1e-5)
    bits = np.rint(255 * np.array([[10, 60, 110, 160], [0, 60, 200, 110]]) / 200)
    assert row["psnr_255"] == pytest.approx(db(255, np.mean(np.diff(bits, axis=0) ** 2)), rel=1e-5)
    masked = by_hand[Convention("min-max", "mask", "volume")]
    assert masked["psnr_1"] == pytest.approx(db(1, np.mean(errors[[0, 1, 3]] ** 2)), rel=1e-5)


def test_slices_have_peaks_of_their_own(by_hand):
    row = by_hand[Convention("min-max", "whole", "slices")]
    # Slice 0: 0, 200 against 10, 110; slice 1: 60, 110 against 60, 160.
    first, second = (0.05**2 + 0.45**2) / 2, 0.25**2 / 2
    assert row["psnr_1"] == pytest.approx((db(1, first) + db(1, second)) / 2, rel=1e-5)
    assert row["psnr_range"] == pytest.approx((db(1, first) + db(0.25, second)) / 2, rel=1e-5)
    assert row["psnr_maximum"] == pytest.approx((db(1, first) + db(0.55, second)) / 2, rel=1e-5)


def test_each_by_its_own_min_and_max(by_hand):
    row = by_hand[Convention("own min-max", "whole", "volume")]
    errors = np.array([0, 50 / 150, 100 / 150, 1]) - np.array([0, 60, 200, 110]) / 200
    assert row["psnr_1"] == pytest.approx(db(1, np.mean(errors**2)), rel=1e-5)


def test_a_gain_and_an_offset_vanish_under_own_min_max_alone():
    rng = np.random.default_rng(0)
    target = rng.uniform(10, 110, (16, 16, 14)).astype(np.float32)
    standardised = TRANSFORM.standardise(target)
    found = conventional_values(0.8 * standardised + 0.1, target, TRANSFORM, target > 30)
    for convention, row in found.items():
        assert (row["psnr_1"] > 60) == (convention.scale == "own min-max"), convention


def test_ssim_is_of_the_volume_in_3d_and_of_slices_in_2d():
    rng = np.random.default_rng(0)
    target = rng.uniform(10, 110, (16, 16, 14)).astype(np.float32)
    made = TRANSFORM.standardise(target) + rng.normal(scale=0.3, size=target.shape).astype("f4")
    mask = target > 30
    found = conventional_values(made, target, TRANSFORM, mask)
    one, other = np.clip(TRANSFORM.unstandardise(made), 0, 1), TRANSFORM.scale(target)
    wide = float(np.ptp(other))
    volume = found[Convention("percentiles", "mask", "volume")]
    assert volume["ssim_windowed"] == pytest.approx(windowed_ssim(one, other, wide, mask), rel=1e-5)
    assert volume["ssim_global"] == pytest.approx(global_ssim(one, other, wide, mask), rel=1e-5)
    slices = [
        windowed_ssim(
            one[..., k : k + 1], other[..., k : k + 1], float(np.ptp(other[..., k])), dims=2
        )
        for k in range(14)
    ]
    row = found[Convention("percentiles", "whole", "slices")]
    assert row["ssim_windowed"] == pytest.approx(np.mean(slices), rel=1e-5)


def test_slices_without_foreground_or_contrast_are_left_out():
    rng = np.random.default_rng(0)
    target = rng.uniform(10, 110, (6, 6, 4)).astype(np.float32)
    target[..., 3] = 50
    mask = np.ones(target.shape, bool)
    mask[..., 0] = False
    made = TRANSFORM.standardise(target)
    made[..., [0, 3]] += 1
    row = conventional_values(made, target, TRANSFORM, mask)[
        Convention("standardised", "whole", "slices")
    ]
    assert row["psnr_1"] == math.inf
    with pytest.raises(ValueError, match="one shape"):
        conventional_values(made[1:], target, TRANSFORM, mask)
    with pytest.raises(ValueError, match="mask is empty"):
        conventional_values(made, target, TRANSFORM, ~mask & mask)

"""Intensities that do not depend on how much background a scan holds."""

from __future__ import annotations

import numpy as np
import pytest

from sharding.volumes.intensities import CENTRE, WIDTH, IntensityTransform
from sharding.volumes.landmarks import (
    GAP,
    PERCENTILES,
    Standards,
    check_landmarks,
    move,
    separated,
    standard_landmarks,
)
from sharding.volumes.tissue import SHARE, quantile, tissue_start

WAYS = ("percentile", "foreground", "landmarks")
CLIP = (0.1, 99.9)


def head(seed=0, shape=(24, 22, 20), inside=0.35):
    """Tissue of three intensities within zero background."""
    rng = np.random.default_rng(seed)
    centre = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    tissue = np.square(centre).sum(axis=0) < inside / 0.5
    values = rng.choice([300, 600, 900], shape) + rng.normal(0, 30, shape)
    return np.where(tissue, values, 0).astype(np.float32)


def fit(data, way):
    return IntensityTransform.fit(data, CLIP, intensities=way)


def test_tissue_is_the_largest_intensity_that_fits_the_rule():
    """By hand: 10 of 100, and then 15, which is not above a fifth of their median, and 5."""
    values = np.sort(np.concatenate([np.full(10, 100.0), np.full(4, 15.0), np.full(50, 5.0)]))
    assert SHARE == 0.2
    assert tissue_start(values.astype(np.float32), 0.0) == 54
    values[-14:-10] = 21
    assert tissue_start(values.astype(np.float32), 0.0) == 50
    # Intensities count from the background's.
    assert tissue_start((values + 1000).astype(np.float32), 1000.0) == 50


def test_a_few_very_bright_voxels_are_not_all_tissue(monkeypatch):
    values = np.sort(np.concatenate([np.zeros(500), np.full(495, 1.0), np.full(5, 100.0)]))
    for chunk in (2**20, 7):
        monkeypatch.setattr("sharding.volumes.tissue.CHUNK", chunk)
        assert tissue_start(values.astype(np.float32), 0.0) == 500


@pytest.mark.parametrize("percentile", [0.0, 0.1, 33.3, 99.9, 100.0])
def test_quantiles_are_numpys(percentile):
    values = np.sort(np.random.default_rng(0).normal(size=997).astype(np.float32))
    assert quantile(values, percentile) == pytest.approx(
        np.percentile(values, percentile), abs=1e-6
    )


@pytest.mark.parametrize("way", WAYS)
def test_background_changes_no_bit(way):
    data = head()
    found = fit(data, way)
    rows, columns, planes = (slice(a.min(), a.max() + 1) for a in np.nonzero(data))
    for other in (
        np.pad(data, [(9, 20), (3, 7), (11, 0)]),
        data[rows, columns, planes],
        np.ascontiguousarray(data.T),
    ):
        assert fit(other, way) == found
    assert fit(data, "standardise") != fit(np.pad(data, 6), "standardise")


@pytest.mark.parametrize("way", WAYS)
def test_noise_in_the_background_changes_little(way):
    rng = np.random.default_rng(1)
    data = head()

    def noisy(volume):
        return volume + np.abs(rng.normal(0, 15, volume.shape)).astype(np.float32)

    one, other = (fit(noisy(volume), way) for volume in (data, np.pad(data, 8)))
    scaled = np.linspace(0, 900, 50, dtype=np.float32)
    np.testing.assert_allclose(one.standardise(scaled), other.standardise(scaled), atol=0.02)


def test_what_the_ways_are():
    data = head()
    tissue = data[data > 0].astype(np.float64)
    percentile, foreground, landmarks = (fit(data, way) for way in WAYS)
    assert (percentile.mean, percentile.std) == (CENTRE, WIDTH) == (0.2, 0.3)
    for found in (percentile, foreground, landmarks):
        assert found.low == 0
        assert found.high == pytest.approx(np.percentile(tissue, 99.75), rel=1e-5)
    scaled = np.clip(tissue / foreground.high, 0, 1)
    assert foreground.mean == pytest.approx(scaled.mean(), rel=1e-5)
    assert foreground.std == pytest.approx(scaled.std(), rel=1e-5)
    expected = np.percentile(tissue, PERCENTILES) / landmarks.high
    np.testing.assert_allclose(landmarks.landmarks, expected, atol=2 * GAP)


@pytest.mark.parametrize("way", ("standardise", *WAYS))
def test_undoing_gives_the_scan_back(way):
    data = head()
    own = fit(data, way).to_standard(fit(head(2), way).landmarks)
    clipped = np.clip(data, own.low, own.high)
    np.testing.assert_allclose(own.restore(own.standardise(data)), clipped, atol=0.1)
    beyond = np.array([-1.0, 3.0], np.float32)
    again = own.standardise_scaled(own.unstandardise(beyond))
    np.testing.assert_allclose(again, beyond, atol=1e-4)


def test_landmarks_bring_a_scan_to_the_standard():
    data = head()
    other = np.where(data > 0, 50 * np.sqrt(data), 0).astype(np.float32)
    standard = standard_landmarks([fit(data, "landmarks").landmarks])
    one, two = (fit(volume, "landmarks").to_standard(standard) for volume in (data, other))
    difference = np.abs(one.standardise(data) - two.standardise(other))
    assert difference.max() < 0.25 and difference.mean() < 0.02
    assert np.abs(one.standardise(data) - fit(other, "percentile").standardise(other)).max() > 0.4


def test_landmarks_are_kept_apart():
    assert standard_landmarks([]) == standard_landmarks([()]) == ()
    for values in (np.zeros(11), np.ones(11), np.full(11, 0.5), np.linspace(0, 1, 11)):
        found = separated(values)
        check_landmarks(found)
        assert np.diff((0, *found, 1)).min() > 0.9 * GAP
        np.testing.assert_allclose(found, values, atol=12 * GAP)
    for wrong in ((0.5,), (0.5,) * 11, np.linspace(0.1, 1.1, 11)):
        with pytest.raises(ValueError, match="landmarks must rise from 0 to 1"):
            Standards(source=tuple(wrong))
    values = np.array([-0.5, 0.0, 0.25, 1.0, 1.5])
    np.testing.assert_allclose(move(values, (0.5,), (0.2,)), [-0.5, 0, 0.1, 1, 1.5])

"""What stands between a model and a better image: bands, and a gain of its own."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.race_ceiling import half_band, share_beyond, with_own_gain


def wave(cycles: float, axis: int, sides: tuple[int, int, int] = (40, 40, 20)) -> np.ndarray:
    """A cosine along an axis, of so many cycles a voxel."""
    steps = np.cos(2 * np.pi * cycles * np.arange(sides[axis])).astype(np.float32)
    shape = [1, 1, 1]
    shape[axis] = -1
    return np.broadcast_to(steps.reshape(shape), sides).copy()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_half_band_holds_slow_waves_and_no_quick_ones(axis: int):
    slow, quick = wave(0.2, axis), wave(0.4, axis)
    assert share_beyond(slow) == pytest.approx(0, abs=1e-5)
    assert share_beyond(quick) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(half_band(slow + 0.5 * quick), slow, atol=1e-5)
    assert share_beyond(slow + 0.5 * quick) == pytest.approx(0.2, abs=1e-3)


def test_a_mean_counts_for_nothing():
    assert share_beyond(100 + wave(0.4, 0)) == pytest.approx(1, abs=1e-3)


def test_a_smooth_gain_is_found_inside_the_mask():
    target = np.random.default_rng(0).uniform(0.5, 1, (32, 32, 32)).astype(np.float32)
    mask = np.zeros(target.shape, bool)
    mask[4:28, 4:28, 4:28] = True
    found = with_own_gain(target / 2, np.where(mask, target, 0), mask)
    np.testing.assert_allclose(found[mask], target[mask], rtol=1e-5)

"""The disagreement of windows: by hand, and whatever their number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distsynth.metrics.overlap import Overlap


def overlap_of(values, weights):
    """Of windows' values and weights, shape (windows, x, y, z); weight 0 where none lies."""
    total = weights.sum(axis=0)
    mean = (weights * values).sum(axis=0) / total
    variance = (weights * np.square(values - mean)).sum(axis=0) / total
    return Overlap(variance, 1 - np.square(weights).sum(axis=0) / total**2)


def test_by_hand():
    values = np.array([1.0, 3.0, 5.0]).reshape(3, 1, 1, 1)
    (weights := np.ones((3, 1, 1, 2)))[1:, ..., 1] = 0
    found = overlap_of(np.broadcast_to(values, weights.shape), weights)
    assert found.disagreement() == pytest.approx(2), "the sample deviation of 1, 3 and 5"
    alone = np.zeros((1, 1, 2), bool)
    alone[..., 1] = True
    assert math.isnan(found.disagreement(alone)), "a single window disagrees with none"
    with pytest.raises(ValueError, match="one shape"):
        found.disagreement(alone[..., :1])


@pytest.mark.parametrize("windows", [2, 4, 9])
@pytest.mark.parametrize("smooth", [False, True])
def test_it_is_the_spread_of_single_windows_whatever_their_number(windows, smooth):
    rng = np.random.default_rng(0)
    shape = (windows, 40, 40, 10)
    weights = rng.uniform(0.01, 1, shape) if smooth else np.ones(shape)
    values = 7 + rng.normal(scale=0.3, size=shape)
    assert overlap_of(values, weights).disagreement() == pytest.approx(0.3, rel=0.02)


def test_it_looks_where_it_is_told():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 20, 20, 20))
    values[:, :10] = 0
    mask = np.zeros((20, 20, 20), bool)
    mask[:10] = True
    found = overlap_of(values, np.ones(values.shape))
    assert found.disagreement(mask) == 0
    assert found.disagreement(~mask) == pytest.approx(1, rel=0.05)

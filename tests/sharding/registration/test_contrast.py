from __future__ import annotations

import numpy as np
import pytest

from sharding.registration.contrast import in_contrast_of


@pytest.fixture
def rng():
    return np.random.default_rng(4)


@pytest.fixture
def target(rng):
    return rng.random((20, 20, 20)).astype(np.float32)


@pytest.mark.parametrize("curve", [lambda x: 1 - x, lambda x: x**2], ids=["inverted", "gamma"])
def test_a_source_of_another_contrast_comes_to_look_like_the_target(curve, target):
    found = in_contrast_of(target, curve(target))
    assert np.abs(found - target).mean() < 0.02
    assert np.corrcoef(found.ravel(), target.ravel())[0, 1] > 0.995


def test_only_the_mask_is_looked_at(target):
    mask = np.zeros(target.shape, bool)
    mask[10:] = True
    source = np.where(mask, 1 - target, target).astype(np.float32)
    found = in_contrast_of(target, source, mask)
    assert np.abs(found - target)[mask].mean() < 0.01
    assert np.abs(found - target)[~mask].mean() > 0.2


def test_what_has_nothing_in_common_becomes_the_targets_mean(target, rng):
    found = in_contrast_of(target, rng.random(target.shape).astype(np.float32))
    assert np.abs(found - target.mean()).max() < 0.1


def test_intensities_that_the_mask_lacks_take_the_nearest_known_value(target):
    mask = target < 0.5
    found = in_contrast_of(target, target, mask)
    assert found.max() == pytest.approx(0.5, abs=0.03)
    assert np.isfinite(found).all()

"""The consistency error of copies, noise and shifts."""

from __future__ import annotations

import numpy as np
import pytest

from distsynth.metrics import consistency


def test_consistency_error_of_a_copy_and_of_noise(pair, rng):
    _, anatomy = pair
    mask = rng.random(anatomy.shape) < 0.8
    source = -np.tanh(0.5 * anatomy)
    assert consistency.consistency_error(anatomy, source, mask) < 0.1
    assert consistency.consistency_error(3 * source - 7, source, mask) == pytest.approx(0, abs=1e-6)
    noise = rng.normal(size=anatomy.shape)
    assert 0.97 < consistency.consistency_error(noise, source, mask) <= 1
    assert consistency.consistency_error(np.zeros_like(source), source, mask) == pytest.approx(1)
    shifted = consistency.consistency_error(np.roll(anatomy, 1, 0), source, mask)
    assert 0.2 < shifted < 1
    with pytest.raises(ValueError, match="constant"):
        consistency.consistency_error(anatomy, np.ones_like(anatomy), mask)

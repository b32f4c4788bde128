"""A pair of volumes that every metric is tried on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def pair(rng):
    """(synthetic, target): smooth anatomy with a little noise between them."""
    target = ndimage.gaussian_filter(rng.normal(size=(24, 22, 20)), 1.5)
    target = (target / target.std()).astype(np.float32)
    return target + 0.1 * rng.normal(size=target.shape).astype(np.float32), target

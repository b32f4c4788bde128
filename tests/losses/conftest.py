"""Patches that every loss is tried on."""

from __future__ import annotations

import numpy as np
import pytest

SPATIAL = [(6, 5), (4, 5, 4)]


@pytest.fixture(params=SPATIAL, ids=["2d", "3d"])
def pair(request):
    """Synthetic and target, float32 numpy."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 3, 1, *request.param)).astype(np.float32)

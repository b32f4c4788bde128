"""A comparison of made-up rows."""

from __future__ import annotations

import pytest
from compared_rows import (
    ALONE,
    CONTROLS,
    CUBIC,
    FCN,
    PIX2PIX,
    UNET,
)

from distsynth.reproduction.comparison import (
    compare,
)


@pytest.fixture
def comparison():
    return compare([CUBIC, UNET, ALONE, PIX2PIX, FCN], CONTROLS)

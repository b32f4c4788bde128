"""The cohort of small volumes that most tests of shards start from."""

from __future__ import annotations

import pytest
from lab import make_lab


@pytest.fixture
def lab(tmp_path):
    return make_lab(tmp_path)

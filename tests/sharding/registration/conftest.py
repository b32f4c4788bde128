"""Small pairs to prepare."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sharding.simulation.phantom import write_phantom_cohort
from sharding.simulation.simulate import SimulationConfig
from sharding.volumes.cohort import read_cohort

SHAPE = (40, 36, 32)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A folder with three phantoms whose sources are moved and shaded. Do not write into it."""
    folder = tmp_path_factory.mktemp("raw")
    moved = SimulationConfig(rotation_degrees=4, shift_mm=0.4, bias=0.2, noise=0.01, seed=5)
    write_phantom_cohort(folder, 3, SHAPE, seed=5, simulation=moved)
    return folder


@pytest.fixture
def copy(raw, tmp_path):
    """A copy of the phantoms that may be spoilt."""
    return Path(shutil.copytree(raw, tmp_path / "raw"))


@pytest.fixture
def one(copy):
    return read_cohort(copy)[0]

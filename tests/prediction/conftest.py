"""A trained model and scans like those that it was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from scans import scan
from tiny_runs import BATCH_NORM, tiny_config

from distsynth.inference.predictor import Predictor, load_predictor
from distsynth.training.loop import train
from sharding.shards.config import ShardConfig
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import read_cohort
from sharding.volumes.volume import write_volume


@pytest.fixture(scope="session")
def model(small_shards: ShardConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on phantoms of 64x60x56 voxels."""
    folder = tmp_path_factory.mktemp("models")
    write_phantom_cohort(folder / "cohort", specimens=5, shape=(64, 60, 56), seed=3)
    write_shards(read_cohort(folder / "cohort"), folder / "shards", small_shards, workers=1)
    train(tiny_config(folder / "shards", BATCH_NORM), folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def predictor(model: Path) -> Predictor:
    return load_predictor(model, "cpu")


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three scans. Do not write into it."""
    folder = tmp_path_factory.mktemp("scans")
    for name, seed in (("a", 21), ("b", 22), ("c", 23)):
        write_volume(folder / f"{name}.nii.gz", scan(seed))
    return folder

"""Exports that tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from exports import FAMILIES, LOSSES, run, with_weights_of_chance
from tiny_runs import ADVERSARIAL, BATCH_NORM, tiny_config

from distsynth.runs.checkpoint import load_checkpoint, save_checkpoint
from distsynth.runs.folder import BEST
from distsynth.training.loop import train


@pytest.fixture(scope="module")
def run_dir(shard_folder, tmp_path_factory):
    config = tiny_config(shard_folder, ADVERSARIAL, BATCH_NORM, LOSSES)
    return train(config, tmp_path_factory.mktemp("runs") / "secret-name").run_dir


@pytest.fixture(scope="module")
def trained(run_dir):
    return load_checkpoint(run_dir / BEST)


@pytest.fixture(scope="module")
def made(run_dir, trained, shard_folder, tmp_path_factory):
    """Family -> its checkpoint and its export; each is made once."""
    folder, known = tmp_path_factory.mktemp("exports"), {}

    def make(family):
        if family not in known:
            path = run_dir / BEST
            if family != "conv":
                own = {"generator.family": family} | FAMILIES[family]
                path = folder / f"{family}.pt"
                save_checkpoint(
                    path, with_weights_of_chance(tiny_config(shard_folder, own), trained)
                )
            assert run("export", path, "--out", folder / family) == 0
            known[family] = path, folder / family
        return known[family]

    return make


@pytest.fixture
def copy(made, tmp_path):
    """An export to do harm to."""
    return Path(shutil.copytree(made("conv")[1], tmp_path / "copy"))

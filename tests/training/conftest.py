"""Runs that others take over."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import tiny_config
from told_epochs import KINDS, THREE, some_epochs

from distsynth.config import RunConfig
from distsynth.training.loop import train


@pytest.fixture(scope="module")
def donors(shard_folder, tmp_path_factory):
    """Runs of three epochs of each kind: whole ones, and ones that end after the first."""
    made = {}

    def find(kind: str) -> tuple[RunConfig, Path, Path]:
        if kind not in made:
            folder = tmp_path_factory.mktemp("donors")
            config = tiny_config(shard_folder, KINDS[kind], THREE)
            train(config, folder / "whole")
            some_epochs(config, folder / "first", 1)
            made[kind] = config, folder / "whole", folder / "first"
        return made[kind]

    return find

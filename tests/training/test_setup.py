"""Setups that cannot be trained are refused before anything starts."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny_runs import tiny_config

from distsynth.errors import ConfigError
from distsynth.training.loop import train
from distsynth.training.setup import check_setup
from sharding.shards.shard_set import ShardSet


@pytest.fixture(scope="module")
def manifest(shard_folder):
    return ShardSet(shard_folder).manifest


def test_what_can_be_trained_passes(shard_folder, manifest):
    check_setup(tiny_config(shard_folder), manifest, 2, False)
    check_setup(tiny_config(shard_folder, {"train.precision": "fp16"}), manifest, 1, True)


@pytest.mark.parametrize(
    ("change", "ranks", "message"),
    [
        ({"train.batch_size": 121}, 1, "train.batch_size must be <= the 120 training patches"),
        ({}, 5, "train.batch_size must be divisible by the 5 ranks, got 24"),
        ({"train.accumulation": 8}, 2, "train.accumulation must be a divisor of the 12 patches"),
        ({"train.precision": "fp16"}, 1, "train.precision must be no or bf16 without a GPU"),
        (
            {"stitch.trim": 5, "stitch.stride": 4},
            1,
            "stitch.trim=5 leaves voxels of .* the shards' stride of 8",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(shard_folder, manifest, change, ranks, message):
    with pytest.raises(ConfigError, match=message):
        check_setup(tiny_config(shard_folder, change), manifest, ranks, False)


def test_the_largest_trim_that_covers_passes(shard_folder, manifest):
    check_setup(tiny_config(shard_folder, {"stitch.trim": 4}), manifest, 1, False)


def test_a_run_is_refused_before_it_writes(shard_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"stitch\.trim=5"):
        train(tiny_config(shard_folder, {"stitch.trim": 5, "stitch.stride": 4}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_flat_specimen_does_not_count_as_divergence(shard_folder, tmp_path, refused):
    folder = tmp_path / "shards"
    shutil.copytree(shard_folder, folder)
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["specimens"][0]["source"]["std"] = 0.0
    path.write_text(json.dumps(content))
    with refused(str(folder), "std must exceed 0", "again"):
        train(tiny_config(folder), tmp_path / "run")

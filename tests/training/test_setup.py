"""Setups that cannot be trained are refused before anything starts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from tiny_runs import tiny_config

from distsynth.errors import ConfigError
from distsynth.training.loop import train
from distsynth.training.setup import check_setup, check_windows
from distsynth.training.validation import validation_axis
from sharding.shards.config import ShardConfig
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import read_cohort


@pytest.fixture(scope="module")
def manifest(shard_folder):
    return ShardSet(shard_folder).manifest


def test_what_can_be_trained_passes(shard_folder, manifest):
    check_setup(tiny_config(shard_folder), manifest, 2, False)
    fp16 = {"train.precision": "fp16", "train.device": "auto"}
    check_setup(tiny_config(shard_folder, fp16), manifest, 1, True)


@pytest.mark.parametrize(
    ("change", "ranks", "message"),
    [
        ({"train.batch_size": 121}, 1, "train.batch_size must be <= the 120 training patches"),
        ({}, 5, "train.batch_size must be divisible by the 5 ranks, got 24"),
        ({"train.accumulation": 8}, 2, "train.accumulation must be a divisor of the 12 patches"),
        (
            {"train.precision": "fp16", "train.device": "auto"},
            1,
            "train.precision must be auto, no or bf16 without a GPU",
        ),
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


def thin(manifest, sides):
    """The manifest with validation specimens of other sides."""
    rows = [replace(row, shape=sides) if row.split == "val" else row for row in manifest.specimens]
    return replace(manifest, specimens=tuple(rows))


def test_windowed_ssim_of_slices_under_its_window_is_no_objective(manifest):
    axis = validation_axis(manifest.config)
    sides = [24, 24, 24]
    sides[axis] = 5
    check_windows(["ssim_2d"], thin(manifest, tuple(sides)))
    sides[axis - 1] = 10
    check_windows(["psnr", "ssim_global", "mse"], thin(manifest, tuple(sides)))
    message = "train.objective=ssim_2d needs validation slices of at least 11 voxels a side"
    with pytest.raises(ConfigError, match=f"{message}.*choose psnr, ssim_global or mse"):
        check_windows(["psnr", "ssim_2d"], thin(manifest, tuple(sides)))


def test_a_run_without_a_possible_best_epoch_is_refused(tmp_path):
    sides, patch = (40, 36, 10), (16, 8)
    write_phantom_cohort(tmp_path / "cohort", specimens=3, shape=sides, seed=3)
    cut = ShardConfig(patch_size=patch, stride=8, patches_per_specimen=24, dense_axes=(0,))
    cut = replace(cut, axes=(0,), fractions=(0.4, 0.3, 0.3))
    write_shards(read_cohort(tmp_path / "cohort"), tmp_path / "shards", cut, workers=1)
    changed = {"data.patch_size": patch, "train.objective": "ssim_2d"}
    with pytest.raises(
        ConfigError, match=r"of at least 11 voxels a side, those of .* have 36 x 10"
    ):
        train(tiny_config(tmp_path / "shards", changed), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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

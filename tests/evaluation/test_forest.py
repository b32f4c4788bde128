"""The forest's features by their definition, its trees by scikit-learn's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from two_contrasts import write_two_contrasts

import distsynth.evaluation.forest
from distsynth.errors import ConfigError
from distsynth.evaluation.forest import (
    BOOSTED,
    FORESTS,
    SHIFTS,
    ForestConfig,
    degraded,
    fit_forest,
    shift_features,
    training_rows,
)
from sharding.shards.config import ShardConfig
from sharding.shards.records import QUANTUM
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards
from sharding.volumes.cohort import Specimen, read_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.pair import prepare_pair
from sharding.volumes.slabs import Empty, in_memory
from sharding.volumes.volume import Volume, write_volume

TINY = ForestConfig(trees=12, depth=6, max_samples=2000, jobs=1, features="directions")
INTENSITY = "rfsr-intensity"
FITS = pytest.mark.parametrize("name", [INTENSITY, BOOSTED])


@dataclass
class Pair:
    source: NDArray[np.float32]
    target: NDArray[np.float32]
    mask: NDArray[np.bool_]
    empty: Empty = in_memory

    @property
    def nearest(self) -> NDArray[np.float32]:
        return self.source

    @property
    def network_source(self) -> NDArray[np.float32]:
        return self.source


def make_pair(seed: int, shape=(9, 8, 7)) -> Pair:
    source = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Pair(source, np.full(shape, np.nan, np.float32), np.zeros(shape, bool))


def by_definition(image: NDArray[np.float32], row: int, column: int) -> list[np.float32]:
    """The features of one voxel."""
    own = image[row, column]
    found = []
    for down in (-2, 0, 2):
        for right in (-2, 0, 2):
            if (down, right) != (0, 0):
                a, b = row + down, column + right
                inside = 0 <= a < image.shape[0] and 0 <= b < image.shape[1]
                found.append((image[a, b] if inside else np.float32(0)) - own)
    return [*found, own]


def make_shards(folder, target_of, **cut):
    """Specimens of noise, each with the target that a function makes of the source."""
    specimens = []
    for seed, (name, word) in enumerate(
        zip("abcd", ("train", "train", "val", "test"), strict=True)
    ):
        noise = np.random.default_rng(seed).uniform(1, 100, (22, 21, 20)).astype(np.float32)
        files = [folder / f"{name}_{role}.nii.gz" for role in ("t", "s")]
        for path, data in zip(files, (target_of(noise), noise), strict=True):
            write_volume(path, Volume(data.astype(np.float32), np.eye(4)))
        specimens.append(Specimen(name, *files, word))
    config = ShardConfig(
        **{"patch_size": (16, 16), "patches_per_specimen": 60, "stride": 8, "axes": (2,)} | cut
    )
    write_shards(specimens, folder / "shards", config, workers=1)
    return ShardSet(folder / "shards"), specimens


@pytest.fixture(scope="module")
def shards(shard_folder):
    return ShardSet(shard_folder)


@pytest.fixture(scope="module")
def forests(shards):
    return {name: fit_forest(name, shards, TINY, quiet=True) for name in (INTENSITY, BOOSTED)}


def test_features_are_those_of_the_definition():
    images = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    expected = [
        by_definition(image, row, column)
        for image in images
        for row in range(7)
        for column in range(3)
    ]
    found = shift_features(images, "directions")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_the_papers_features_are_the_grid_of_shifts_without_intensity():
    images = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    found = shift_features(images, "grid").reshape(2, 6, 5, 25)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    for column, (down, right) in enumerate(
        (a, b) for a in (-2, -1, 0, 1, 2) for b in (-2, -1, 0, 1, 2)
    ):
        moved = padded[:, 2 + down : 8 + down, 2 + right : 7 + right]
        np.testing.assert_array_equal(found[..., column], moved - images)
    assert not found[..., SHIFTS["grid"].index((0, 0))].any()
    # A brighter image looks the same to it, away from the padded sides.
    brighter = shift_features(images + 3, "grid").reshape(2, 6, 5, 25)
    np.testing.assert_allclose(brighter[:, 2:-2, 2:-2], found[:, 2:-2, 2:-2], atol=1e-5)


def test_the_papers_forest_learns_from_degraded_targets(shards):
    paper = replace(FORESTS["rfsr"], trees=2, max_samples=100, jobs=1)
    _, rows, residuals = training_rows(shards, paper, quiet=True)
    pairs = replace(paper, degrade=0)
    assert rows.shape[1] == 25 and rows.shape == training_rows(shards, pairs, quiet=True)[1].shape
    targets = [
        (block.target / QUANTUM - row.target.mean) / row.target.std
        for shard in shards.shards("train")
        for block in shards.read(shard)
        for row in shards.manifest.specimens
        if row.name == block.specimen
    ]
    target = torch.from_numpy(np.concatenate(targets).astype(np.float32))
    low = degraded(target, 2)
    np.testing.assert_allclose(residuals, (target - low).numpy().ravel(), atol=1e-4)
    expected = shift_features(low.numpy(), "grid")
    np.testing.assert_allclose(rows, expected, atol=1e-4)


def test_degrading_keeps_what_a_coarser_grid_can_hold():
    ramp = torch.arange(16.0).expand(1, 16, 16).contiguous()
    np.testing.assert_allclose(degraded(ramp, 2)[:, :, 3:-3], ramp[:, :, 3:-3], atol=0.1)
    checkerboard = (torch.arange(16) % 2 * 2 - 1).float().expand(1, 16, 16).contiguous()
    assert degraded(checkerboard, 2).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("field", "value"), [("features", "cube"), ("degrade", 1), ("degrade", -2)]
)
def test_what_a_forest_cannot_be_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        ForestConfig(**{field: value})


def test_rows_are_those_of_the_training_records(shards):
    statistics = {row.name: row for row in shards.manifest.specimens}
    features, residuals = [], []
    for shard in shards.shards("train"):
        for block in shards.read(shard):
            row = statistics[block.specimen]
            for stored, goal in zip(block.source[:, 0], block.target, strict=True):
                source = (stored / QUANTUM - row.source.mean) / row.source.std
                target = (goal / QUANTUM - row.target.mean) / row.target.std
                features.append(shift_features(source[None].astype(np.float32), "directions"))
                residuals.append((target - source).ravel())
    count, found, goals = training_rows(shards, TINY, quiet=True)
    assert count == 120 == shards.manifest.patches("train")
    assert found.dtype == goals.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate(features), atol=1e-5)
    np.testing.assert_allclose(goals, np.concatenate(residuals), atol=1e-5)


def test_a_fraction_is_whole_patches_chosen_by_the_seed(shards):
    def chosen(fraction, seed):
        config = replace(TINY, fraction=fraction, seed=seed)
        count, rows, _ = training_rows(shards, config, quiet=True)
        assert len(rows) == count * 256
        return {patch.tobytes() for patch in rows.reshape(count, 256, TINY.columns)}

    everything = chosen(1.0, 0)
    some, again, others = chosen(0.25, 0), chosen(0.25, 0), chosen(0.25, 1)
    assert len(some) == 30 and some < everything
    assert some == again != others < everything
    assert len(chosen(1e-9, 0)) == 1


@FITS
def test_only_training_records_are_read(shards, name, monkeypatch):
    read = []
    whole = ShardSet.read

    def spy(self, shard):
        read.append(shard)
        return whole(self, shard)

    monkeypatch.setattr(ShardSet, "read", spy)
    monkeypatch.setattr(ShardSet, "mask", lambda *_: pytest.fail("a mask was read"))
    found = fit_forest(name, shards, TINY, quiet=True)
    assert {shard.split for shard in read} == {"train"}
    assert {shard.name for shard in read} == {shard.name for shard in shards.shards("train")}
    assert (found.fit.patches, found.fit.rows) == (120, 120 * 256)
    assert found.fit.bytes == 120 * 256 * 4 * (TINY.columns + 1)
    assert found.fit.seconds > 0


def test_trees_are_those_of_one_fit(shards, forests):
    _, features, residuals = training_rows(shards, TINY, quiet=True)
    # All trees at once, where the forest goes by steps.
    plain = RandomForestRegressor(12, max_depth=6, max_samples=2000, random_state=0)
    expected = plain.fit(features, residuals).predict(features)
    found = forests[INTENSITY].model.predict(features)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    rng = np.random.default_rng([0, 1])
    rows = np.sort(rng.choice(len(features), 2000, replace=False))
    options = {"max_iter": 12, "max_depth": 6, "max_leaf_nodes": None, "min_samples_leaf": 1}
    boosted = HistGradientBoostingRegressor(early_stopping=False, random_state=0, **options)
    expected = boosted.fit(features[rows], residuals[rows]).predict(features)
    found = forests[BOOSTED].model.predict(features)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@FITS
def test_a_known_residual_is_learnt(tmp_path, name):
    def target(source):
        """A neighbour two voxels away adds to a voxel, more so if that is bright."""
        moved = np.pad(source, 2)[4:, 2:-2, 2:-2]
        return source + np.where(source > 50, 0.8, 0.2) * (moved - source)

    shards, specimens = make_shards(tmp_path, target)
    config = ForestConfig(
        trees=15 if name == INTENSITY else 40,
        depth=9 if name == INTENSITY else 6,
        max_samples=8000,
        min_samples_leaf=3,
        jobs=1,
        features="directions",
    )
    found = fit_forest(name, shards, config, quiet=True)
    pair = prepare_pair(specimens[3], PreprocessConfig())
    synthetic = found.predict(pair)
    assert synthetic.dtype == np.float32 and synthetic.shape == pair.target.shape
    error = np.mean((synthetic - pair.target) ** 2)
    assert error < 0.15 * np.mean((pair.source - pair.target) ** 2)


@FITS
def test_nothing_to_learn_leaves_the_source(tmp_path, name):
    shards, _ = make_shards(tmp_path, lambda source: 2 * source)
    found = fit_forest(name, shards, TINY, quiet=True)
    pair = make_pair(0)
    np.testing.assert_allclose(found.predict(pair), pair.source, atol=1e-5)


@FITS
def test_the_seed_fixes_the_fit_whatever_the_jobs(shards, name, monkeypatch):
    monkeypatch.setattr(distsynth.evaluation.forest, "BLOCK", 100)
    config = replace(TINY, trees=11, depth=4)
    one, both, other = (
        fit_forest(name, shards, replace(config, **changes), quiet=True)
        for changes in ({}, {"jobs": 2}, {"seed": 1})
    )
    pair = make_pair(0, (30, 25, 20))
    once = both.predict(pair)
    np.testing.assert_array_equal(once, one.predict(pair))
    assert not np.array_equal(once, other.predict(pair))
    monkeypatch.undo()
    np.testing.assert_array_equal(once, both.predict(pair))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_is_predicted_slice_by_slice(forests, axis):
    forest = replace(forests[INTENSITY], config=replace(TINY, axes=(axis,)))
    pair = make_pair(1)
    synthetic = forest.predict(pair)
    for index in range(pair.source.shape[axis]):
        image = pair.source.take(index, axis)
        rows = [by_definition(image, *place) for place in np.ndindex(image.shape)]
        residual = forest.model.predict(np.array(rows)).astype(np.float32)
        expected = residual.reshape(image.shape) + image
        np.testing.assert_array_equal(synthetic.take(index, axis), expected)


def test_several_axes_are_averaged(forests):
    pair = make_pair(2)
    forest = forests[INTENSITY]
    each = [
        replace(forest, config=replace(TINY, axes=axes)).predict(pair)
        for axes in ((0,), (1,), (2,), (0, 1, 2))
    ]
    np.testing.assert_allclose(each[3], np.mean(each[:3], axis=0), atol=1e-6)


@FITS
def test_a_constant_volume_is_predicted(forests, name):
    pair = make_pair(0)
    pair.source[...] = 3
    assert np.isfinite(forests[name].predict(pair)).all()


def test_patches_with_neighbours_give_their_middle_channel(tmp_path):
    folders = [tmp_path / name for name in ("plain", "stacked")]
    found = []
    for folder, neighbours in zip(folders, (0, 1), strict=True):
        shards, _ = make_shards(folder, np.sqrt, neighbours=neighbours)
        found.append(training_rows(shards, TINY, quiet=True))
    for left, right in zip(*found, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def contrasts(tmp_path_factory):
    """Shards of T1 and T2 and of T1 alone, with the pair of a specimen for each."""
    folder = tmp_path_factory.mktemp("contrasts")
    both = read_cohort(write_two_contrasts(folder, specimens=4))
    alone = [replace(row, contrast="", further=()) for row in both]
    found = {}
    for name, rows, neighbours in (("both", both, 1), ("alone", alone, 0)):
        config = ShardConfig(
            patch_size=(16, 16), patches_per_specimen=30, stride=8, neighbours=neighbours
        )
        write_shards(rows, folder / name, config, workers=1)
        found[name] = ShardSet(folder / name), prepare_pair(rows[-1], PreprocessConfig())
    return found


@pytest.mark.parametrize("name", FORESTS)
def test_a_forest_learns_from_the_second_contrast(contrasts, name):
    """The target is two thirds of what T2 shows alone; rfsr sees no source when it is fitted."""
    config = replace(FORESTS[name], trees=20, depth=8, max_samples=4000, jobs=1)
    errors, forests = {}, {}
    for which, (shards, pair) in contrasts.items():
        forests[which] = fit_forest(name, shards, config, quiet=True)
        synthetic = forests[which].predict(pair)
        errors[which] = np.mean((synthetic - pair.target)[pair.mask] ** 2)
    if name == "rfsr":
        assert errors["both"] == errors["alone"]
        return
    assert errors["both"] < 0.7 * errors["alone"]
    with pytest.raises(ValueError, match="a pair must have 2 contrasts, got 1"):
        forests["both"].predict(contrasts["alone"][1])


def test_features_of_contrasts_follow_each_other(contrasts):
    (both, _), (alone, _) = contrasts["both"], contrasts["alone"]
    _, features, residuals = training_rows(both, TINY, quiet=True)
    _, first, same = training_rows(alone, TINY, quiet=True)
    assert features.shape[1] == 2 * first.shape[1] == 2 * TINY.columns
    np.testing.assert_array_equal(features[:, : TINY.columns], first)
    np.testing.assert_array_equal(residuals, same)
    assert not np.array_equal(features[:, TINY.columns :], first)


def test_shards_without_slices_or_training_patches_are_refused(tmp_path, shard_folder):
    blocks, _ = make_shards(tmp_path / "blocks", np.sqrt, patch_size=(8, 8, 8))
    with pytest.raises(ConfigError, match=r"two sides.*8, 8, 8"):
        fit_forest(INTENSITY, blocks, TINY, quiet=True)
    nobody = ShardSet(shard_folder)
    left = tuple(shard for shard in nobody.manifest.shards if shard.split != "train")
    nobody.manifest = replace(nobody.manifest, shards=left)
    with pytest.raises(ConfigError, match="no training patch"):
        fit_forest(BOOSTED, nobody, TINY, quiet=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trees", 0),
        ("depth", 0),
        ("max_samples", 0),
        ("min_samples_leaf", 0),
        ("fraction", 0.0),
        ("fraction", 1.1),
        ("fraction", float("nan")),
        ("axes", ()),
        ("axes", (0, 0)),
        ("axes", (3,)),
        ("seed", -1),
        ("seed", 2**32),
        ("jobs", -1),
    ],
)
def test_a_configuration_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field} must be"):
        ForestConfig(**{field: value})

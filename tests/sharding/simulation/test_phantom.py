"""Phantoms: seeded, each its own, with the contrasts that a network is to learn."""

from __future__ import annotations

import numpy as np
import pytest

from sharding.simulation.phantom import phantom_volume, write_phantom_cohort
from sharding.simulation.simulate import SimulationConfig
from sharding.volumes.cohort import read_cohort
from sharding.volumes.intensities import IntensityTransform
from sharding.volumes.masks import foreground_mask
from sharding.volumes.splits import assign_splits
from sharding.volumes.volume import read_volume

SHAPE = (40, 36, 32)


@pytest.mark.parametrize("seed", range(3))
def test_a_phantom_looks_like_a_specimen(seed):
    volume = phantom_volume(SHAPE, seed, spacing_mm=0.3)
    assert volume.shape == SHAPE
    assert volume.data.dtype == np.float32
    assert volume.spacing_mm == pytest.approx((0.3, 0.3, 0.3))
    assert volume.data.min() == 0
    assert 800 < volume.data.max() < 1300
    scaled = IntensityTransform.fit(volume.data, (0.1, 99.9)).scale(volume.data)
    mask = foreground_mask(scaled, 0.05)
    assert 0.15 < mask.mean() < 0.5
    faces = [mask[0], mask[-1], mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]]
    assert not any(face.any() for face in faces), "the background surrounds it"
    white, cortex = np.median(volume.data[18:22, 16:20, 14:18]), np.percentile(volume.data, 99)
    assert 300 < white < 450 < 700 < cortex


def test_a_phantom_is_a_function_of_its_seed():
    first, again, other = (phantom_volume(SHAPE, seed).data for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    inside = (first > 50) & (other > 50)
    assert np.corrcoef(first[inside], other[inside])[0, 1] < 0.9


def test_a_phantom_cohort_is_ready_to_shard(phantom_cohort):
    rows = read_cohort(phantom_cohort)
    assert [row.name for row in rows] == [f"phantom-{index:02d}" for index in range(5)]
    assert sorted(assign_splits(rows).values()) == ["test", "train", "train", "train", "val"]
    volumes = [read_volume(row.target) for row in rows]
    assert len({volume.data.tobytes() for volume in volumes}) == 5
    for row, volume in zip(rows, volumes, strict=True):
        source = read_volume(row.source)
        assert volume.shape == SHAPE
        assert source.shape == (20, 18, 16)
        assert source.spacing_mm == pytest.approx((0.4, 0.4, 0.4))


def test_the_same_seed_writes_the_same_files_and_none_is_overwritten(tmp_path, refused):
    def make(out, seed, **more):
        write_phantom_cohort(
            out, 2, (16, 16, 16), seed, SimulationConfig(noise=0.01, seed=seed), **more
        )
        return {path.name: path.read_bytes() for path in out.iterdir()}

    first = make(tmp_path / "one", 1)
    assert first == make(tmp_path / "two", 1)
    with refused(tmp_path / "one", "exists already", "--overwrite"):
        make(tmp_path / "one", 2)
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    again = make(tmp_path / "one", 2, overwrite=True)
    assert all(again[name] != first[name] for name in first if name != "cohort.csv")

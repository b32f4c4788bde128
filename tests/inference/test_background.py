"""How much background a scan holds changes no prediction, but where intensities are the paper's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distsynth.config import RunConfig, with_overrides
from distsynth.data.dataset import Batch
from distsynth.data.standardiser import Standardiser
from distsynth.evaluation.evaluate import evaluate
from distsynth.inference.predictor import Predictor
from distsynth.models import build_generator
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from sharding.shards.config import ShardConfig
from sharding.shards.records import QUANTUM
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards
from sharding.volumes.cohort import read_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.landmarks import PERCENTILES, Standards
from sharding.volumes.pair import prepare_pair
from sharding.volumes.volume import Volume

CONFIG = {
    "data.patch_size": (12, 12, 12),
    "data.neighbours": 0,
    "data.alignment": 1,
    "generator.channels": (4,),
    "generator.kernels": (3,),
    "generator.norm": "none",
    "stitch.stride": 6,
    "stitch.trim": 2,
}
RISING = tuple(np.linspace(0.1, 0.9, len(PERCENTILES)).tolist())


def predictor(data):
    config = with_overrides(RunConfig(), CONFIG)
    torch.manual_seed(1)
    generator = build_generator(config.generator, (12, 12, 12), 1).eval()
    return Predictor(
        Checkpoint(config, data, Position(), {}, [], {}), generator, torch.device("cpu")
    )


def scan():
    """Tissue between 300 and 900 within background of zeros, six voxels wide or more."""
    data = np.zeros((30, 28, 26), np.float32)
    data[6:-6, 6:-6, 6:-6] = np.random.default_rng(0).uniform(300, 900, (18, 16, 14))
    return data


@pytest.mark.parametrize(
    ("way", "same"),
    [("percentile", True), ("foreground", True), ("landmarks", True), ("standardise", False)],
)
def test_background_that_is_cropped_or_padded(way, same):
    standards = Standards(RISING, RISING) if way == "landmarks" else Standards()
    record = DataRecord(
        "sha", PreprocessConfig(intensities=way), (1.0,) * 3, "RAS", {}, (), standards
    )
    model, data = predictor(record), scan()
    more, less = np.pad(data, 8), data[3:-3, 3:-3, 3:-3]
    tissue = model.predict(Volume(data, np.eye(4))).data[6:-6, 6:-6, 6:-6]
    for other, margin in ((more, 14), (less, 3)):
        inner = (slice(margin, -margin),) * 3
        found = model.predict(Volume(other, np.eye(4))).data[inner]
        difference = np.abs(found - tissue).max() / 900
        assert (difference < 1e-5) == same, difference
        assert same or difference > 0.01


@pytest.fixture(scope="module")
def shard_sets(phantom_cohort, tmp_path_factory):
    """Way -> shards of the phantoms, each cut once."""
    folder, made = tmp_path_factory.mktemp("intensities"), {}

    def cut(way):
        if way not in made:
            config = ShardConfig(
                patch_size=(12, 12, 12),
                patches_per_specimen=4,
                stride=12,
                preprocess=PreprocessConfig(intensities=way),
            )
            write_shards(read_cohort(phantom_cohort), folder / way, config, workers=1)
            made[way] = ShardSet(folder / way)
        return made[way]

    return cut


@pytest.mark.parametrize("way", ["percentile", "landmarks"])
def test_training_and_prediction_see_the_same(way, shard_sets, phantom_cohort):
    manifest = shard_sets(way).manifest
    index, row = next((i, row) for i, row in enumerate(manifest.specimens) if row.split == "val")
    specimen = next(each for each in read_cohort(phantom_cohort) if each.name == row.name)
    pair = prepare_pair(specimen, manifest.config.preprocess, manifest.standards)
    stored = [
        torch.from_numpy(np.rint(scaled * QUANTUM).astype(np.uint16))[None, None]
        for scaled in (pair.source_scaled, pair.target_scaled)
    ]
    where = torch.tensor([[index, -1, 0, 0, 0]], dtype=torch.int32)
    found = Standardiser(manifest, torch.device("cpu"))(Batch(*stored, where))
    for volume, expected in zip(found, (pair.source, pair.target), strict=True):
        np.testing.assert_allclose(volume[0, 0], expected, atol=2e-4)
    assert bool(manifest.standards.target) == (way == "landmarks")
    assert DataRecord.of(manifest).standards == manifest.standards


@pytest.mark.parametrize("way", ["standardise", "percentile", "landmarks"])
def test_all_are_measured_on_one_scale_and_say_what_is_lent(way, shard_sets, phantom_cohort):
    data = DataRecord.of(shard_sets(way).manifest)
    specimens = read_cohort(phantom_cohort)

    class Target:
        """The target itself: the best that any method can do."""

        name = "target"

        def predict(self, pair):
            return pair.target

    class Flat:
        """Half the scale everywhere."""

        name = "flat"

        def predict(self, pair):
            own = pair.target_transform
            return own.standardise_scaled(np.full(pair.grid.shape, 0.5, np.float32))

    found = evaluate({}, specimens, baselines=[Target(), Flat()], data=data)
    (name,) = found.specimens
    best, flat = (found.results[method][name] for method in ("target", "flat"))
    assert best["psnr_mask"] > (60 if way == "standardise" else 38)
    assert best["ssim_mask"] > 0.99
    if way == "percentile":
        assert best["psnr_unlent"] == pytest.approx(best["psnr_mask"])
        assert flat["psnr_unlent"] == pytest.approx(flat["psnr_mask"], abs=1e-3)
    else:
        assert best["psnr_unlent"] < best["psnr_mask"]
    assert 5 < flat["psnr_mask"] < 20

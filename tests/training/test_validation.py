from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import tiny_config

import distsynth.training.validation
from distsynth.config import with_overrides
from distsynth.data.dataset import PatchDataset
from distsynth.data.loader import validation_batches
from distsynth.data.standardiser import Standardiser
from distsynth.inference.predictor import Predictor
from distsynth.inference.stitching import Stitcher, border_planes
from distsynth.inference.windows import overlap
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.metrics.image import global_ssim, mse, psnr, windowed_ssim
from distsynth.metrics.seams import seams
from distsynth.models import build_generator
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from distsynth.training.steps import make_accelerator
from distsynth.training.validation import Validator, layers
from sharding.shards.config import ShardConfig
from sharding.shards.patches import dense_locations
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards
from sharding.volumes.cohort import read_cohort
from sharding.volumes.pair import prepare_pair

SPLITS = ("train", "val", "val", "test")


@pytest.fixture(scope="module")
def specimens(phantom_cohort):
    """Two to validate on, so that means over specimens show."""
    return read_cohort(phantom_cohort)[:4]


def sharded(specimens, folder, **options):
    rows = [replace(row, split=split) for row, split in zip(specimens, SPLITS, strict=True)]
    defaults = {"patches_per_specimen": 8, "stride": 8, "block": 64}
    config = ShardConfig(**({"patch_size": (16, 16)} | defaults | options))
    write_shards(rows, folder, config, workers=1)
    return ShardSet(folder)


@pytest.fixture(scope="module")
def whole(specimens, tmp_path_factory):
    """Every slice of two validation volumes."""
    return sharded(specimens, tmp_path_factory.mktemp("whole") / "shards")


def validator(shards, accelerator=None, **overrides):
    config = tiny_config(shards.folder.local, {"loss.lambda_gradient": 0.5}, overrides)
    accelerator = accelerator or make_accelerator("no", cpu=True)
    standardise = Standardiser(shards.manifest, torch.device("cpu"))
    return Validator(shards, config, accelerator, standardise, GeneratorLoss(config.loss)), config


def network(config, seed=0):
    torch.manual_seed(seed)
    return build_generator(config.generator, config.data.patch_size)


@pytest.mark.parametrize(
    "overrides", [{}, {"stitch.trim": 2}, {"stitch.trim": 3, "stitch.weights": "smooth"}]
)
def test_equals_metrics_of_predicted_whole_volumes(overrides, whole, specimens):
    validate, config = validator(whole, **overrides)
    generator = network(config)
    found = validate(generator)

    data = DataRecord.of(whole.manifest)
    checkpoint = Checkpoint(config, data, Position(), {}, [], {})
    predictor = Predictor(checkpoint, generator.eval(), torch.device("cpu"))
    rows = []
    for specimen in specimens[1:3]:
        pair = prepare_pair(specimen, data.preprocess)
        variance = np.zeros(pair.grid.shape, np.float32)
        synthetic = predictor(pair.source, quiet=True, variance=variance)
        windows = overlap(predictor, variance)
        transform = pair.target_transform
        error = mse(synthetic, pair.target, pair.mask)
        shape = pair.grid.shape
        borders = border_planes(predictor.locations(shape), shape, (16, 16), config.stitch.trim)
        scaled = [transform.unstandardise(volume) for volume in (synthetic, pair.target)]
        inside, outside = seams(synthetic, pair.target, borders, (pair.mask, ~pair.mask))
        rows.append(
            {
                "val/mse": error,
                "val/psnr": psnr(error, transform.data_range),
                "val/psnr255": psnr(error, 255),
                "val/ssim_global": global_ssim(*scaled, 1.0, pair.mask),
                "val/ssim_2d": windowed_ssim(*scaled, 1.0, pair.mask, 2, 2),
                "val/seam_index": inside.index,
                "val/seam_index_outside": outside.index,
                "val/seam_excess": inside.excess,
                "val/seam_excess_outside": outside.excess,
                "val/overlap_disagreement": windows.disagreement(pair.mask),
                "val/overlap_disagreement_outside": windows.disagreement(~pair.mask),
            }
        )
    for name in rows[0]:
        expected = float(np.mean([row[name] for row in rows]))
        # The shards hold 16 bits; a small excess is a root of a difference.
        assert found[name] == pytest.approx(expected, rel=2e-4, abs=1e-4), name
    assert rows[0]["val/psnr"] != pytest.approx(rows[1]["val/psnr"], rel=1e-3)


def test_loss_terms_are_means_over_all_patches(whole):
    validate, config = validator(whole)
    generator = network(config)
    found = validate(generator)
    standardise = Standardiser(whole.manifest, torch.device("cpu"))
    total = whole.manifest.patches("val")
    (batch,) = validation_batches(whole, "val", np.arange(total), total)
    with torch.no_grad():
        source, target = standardise(batch)
        difference = generator(source) - target
    assert found["val/recon"] == pytest.approx(float(difference.abs().mean()), rel=1e-5)
    gradient = sum(float(difference.diff(dim=axis).square().mean()) for axis in (2, 3))
    assert found["val/gradient"] == pytest.approx(gradient, rel=1e-5)


def test_patches_that_an_update_tore_apart_are_validated_alike(specimens, tmp_path):
    """The dropped specimen shared a shard with the first patches of the one that stays."""
    folder, packed = tmp_path / "shards", {"block": 50, "shard_mb": 0.2}
    sharded(specimens, folder, **packed)
    rows = [replace(row, split=split) for row, split in zip(specimens, SPLITS, strict=True)]
    config = ShardSet(folder).manifest.config
    fresh_folder = tmp_path / "fresh"
    kept = [row for row in rows if row.name != specimens[1].name]
    write_shards(kept, folder, config, workers=1, update=True)
    write_shards(kept, fresh_folder, config, workers=1)
    found = []
    for path in (folder, fresh_folder):
        shards = ShardSet(path)
        total = shards.manifest.patches("val")
        (batch,) = validation_batches(shards, "val", np.arange(total), total)
        validate, run = validator(shards)
        found.append((batch.where[:, 1:], validate(network(run))))
    assert not torch.equal(found[0][0], found[1][0]), "they lie in another order"
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_each_patch_is_read_exactly_once(workers, whole, monkeypatch):
    seen = Counter()

    def counting(*args):
        for batch in validation_batches(*args):
            seen.update(map(tuple, batch.where.tolist()))
            yield batch

    monkeypatch.setattr(distsynth.training.validation, "validation_batches", counting)
    validate, config = validator(whole, **{"data.workers": workers})
    validate(network(config))
    assert len(seen) == whole.manifest.patches("val")
    assert set(seen.values()) == {1}
    assert {where[0] for where in seen} == {1, 2}


class Perfect(torch.nn.Module):
    """Knows the target of each source patch."""

    def __init__(self, shards):
        super().__init__()
        total = shards.manifest.patches("val")
        (batch,) = validation_batches(shards, "val", np.arange(total), total)
        source, target = Standardiser(shards.manifest, torch.device("cpu"))(batch)
        self.known = {
            patch.numpy().tobytes(): answer for patch, answer in zip(source, target, strict=True)
        }

    def forward(self, source):
        return torch.stack([self.known[patch.numpy().tobytes()] for patch in source])


@pytest.mark.parametrize("options", [{}, {"val_slices": 4}, {"neighbours": 1}])
def test_a_perfect_network_has_perfect_numbers(options, whole, specimens, tmp_path):
    shards = sharded(specimens, tmp_path / "shards", **options) if options else whole
    validate, _ = validator(shards)
    found = validate(Perfect(shards))
    assert found["val/psnr"] == math.inf
    assert found["val/mse"] == found["val/recon"] == 0
    assert found["val/ssim_2d"] == pytest.approx(1)
    assert found["val/ssim_global"] == pytest.approx(1)


@pytest.mark.parametrize(("axes", "slices"), [((0,), 3), ((1,), 0), ((0, 1, 2), 0), ((0, 1, 2), 3)])
def test_other_axes_and_few_slices_give_finite_numbers(axes, slices, specimens, tmp_path):
    shards = sharded(specimens, tmp_path / "s", dense_axes=axes, val_slices=slices, stride=16)
    validate, config = validator(shards)
    found = validate(network(config))
    assert all(math.isfinite(value) for value in found.values()), found


def test_blocks_are_validated_too(specimens, tmp_path):
    shards = sharded(specimens, tmp_path / "s", patch_size=(16, 16, 16), stride=16)
    validate, config = validator(shards, **{"data.patch_size": (16, 16, 16)})
    found = validate(network(config))
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("axes", "slices"), [((2,), 0), ((0,), 5), ((2, 1), 0)], ids=["all", "few", "two-axes"]
)
def test_a_share_of_slices_has_the_numbers_of_these_slices(axes, slices, specimens, tmp_path):
    """As if the shards had held these slices along this axis alone."""
    shards = sharded(specimens, tmp_path / "s", dense_axes=axes, val_slices=slices)
    validate, config = validator(shards, **{"train.validate_share": 0.3})
    generator = network(config)
    found, again = validate(generator), validate(generator)
    assert found == again
    rows = PatchDataset(shards, "val").where(np.arange(shards.manifest.patches("val")))
    expected = []
    for number in (1, 2):
        specimen = shards.manifest.specimens[number]
        mask = shards.mask(specimen)
        own = rows[rows[:, 0] == number, 1:]
        starts = np.unique(own[own[:, 0] == axes[0], 1 + axes[0]])
        held = [start for start in starts if mask.take(start, axes[0]).any()]
        count = math.ceil(0.3 * len(held))
        planes = [held[int((index + 0.5) * len(held) / count)] for index in range(count)]
        expected.append(_error_of_planes(shards, generator, number, axes[0], planes))
    assert found["val/mse"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert found["val/mse"] != pytest.approx(validate(generator, everything=True)["val/mse"])


def _error_of_planes(shards, generator, number, axis, planes):
    """MSE in the mask of stitched slices of a specimen."""
    specimen = shards.manifest.specimens[number]
    total = shards.manifest.patches("val")
    (batch,) = validation_batches(shards, "val", np.arange(total), total)
    where = batch.where.numpy()
    own = (where[:, 0] == number) & (where[:, 1] == axis) & np.isin(where[:, 2 + axis], planes)
    source, target = Standardiser(shards.manifest, torch.device("cpu"))(batch)
    volumes = []
    with torch.no_grad():
        for patches in (generator.eval()(source), target):
            stitcher = Stitcher(specimen.shape, (16, 16))
            stitcher.add(patches[torch.from_numpy(own), 0], where[own, 1:])
            volumes.append(stitcher.volume(allow_uncovered=True).numpy())
    mask = shards.mask(specimen) & np.isfinite(volumes[0])
    return mse(*volumes, mask)


@pytest.mark.parametrize("trim", [0, 3])
def test_a_share_of_blocks_is_whole_layers(trim, specimens, tmp_path):
    shards = sharded(specimens, tmp_path / "s", patch_size=(16, 16, 16), stride=8)
    overrides = {"data.patch_size": (16, 16, 16), "stitch.stride": 8, "stitch.trim": trim}
    validate, config = validator(shards, **{**overrides, "train.validate_share": 0.1})
    generator = network(config)
    found, everything = validate(generator), validate(generator, everything=True)
    assert all(math.isfinite(value) for value in found.values()), found
    assert found["val/mse"] != pytest.approx(everything["val/mse"])
    validate, _ = validator(shards, **{**overrides, "train.validate_share": 0.999})
    assert validate(generator) == pytest.approx(everything, rel=1e-5)


def test_layers_without_tissue_are_left_out():
    where = dense_locations((40, 40, 60), (20, 20, 20), 20, (2,))
    mask = np.zeros((40, 40, 60), bool)
    mask[:, :, 45] = True
    chosen = layers(where, mask, (20, 20, 20), 2, 0.5, 0)
    assert set(where[chosen, 3]) == {40}
    assert np.count_nonzero(chosen) == 4


def test_the_network_is_validated_in_eval_mode_and_left_in_training_mode(whole):
    validate, config = validator(whole)
    config = with_overrides(config, {"generator.norm": "batch"})
    generator = network(config)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    first = validate(generator)
    assert generator.training
    assert validate(generator) == first
    after = generator.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_two_ranks_add_up_to_one(whole):
    """Each rank's own sums, added as the ranks would, give what one process has."""

    class Rank:
        device = torch.device("cpu")
        num_processes = 2

        def __init__(self, index, others):
            self.process_index, self.others, self.own = index, iter(others), []

        def reduce(self, value, how):
            assert how == "sum"
            self.own.append(value.clone())
            return value + next(self.others, 0)

    alone, config = validator(whole)
    generator = network(config)
    expected = alone(generator)
    shares = []
    for index in (0, 1):
        rank = Rank(index, [])
        validate, _ = validator(whole, accelerator=rank)
        validate._metrics = lambda *_: {"mse": 0.0}
        validate(generator)
        shares.append(rank.own)
    ranked = Rank(0, shares[1])
    found = validator(whole, accelerator=ranked)[0](generator)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6)

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distsynth.config import from_json, to_json, validate, with_overrides
from distsynth.errors import ConfigError
from distsynth.inference.predictor import load_predictor
from distsynth.models import build_discriminator, build_generator, parameter_count
from distsynth.presets import BLOCKS, GENERATORS, OURS, PRESETS, describe, preset
from distsynth.training.loop import train
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import read_cohort

# Table 1: name, generator's and discriminator's parameters (ours for the latter), BCE, L1, L2,
# gradient, perceptual, learning rates of generator and discriminator.
TABLE_1 = [
    ("dcgan-1", 6_885, 6_853, 1, 1.5, 0, 1.5, 0, 5e-5, 2e-5),
    ("dcgan-2", 458_385, 458_353, 1, 1.5, 0, 0, 0, 2e-4, 2e-5),
    ("dcgan-3", 868_369, 868_337, 1, 1.5, 0, 0, 0, 2e-4, 2e-5),
    ("dcgan-4", 868_369, 868_337, 1, 1.5, 0, 1.5, 0, 2e-4, 2e-5),
    ("unet-5", 1_829_025, 458_353, 1, 1.5, 0, 2, 0, 2e-3, 2e-4),
    ("unet-6", 1_829_025, 458_353, 1, 1.5, 0, 2, 0, 2e-3, 2e-4),
    ("unet-7", 1_829_025, 458_353, 1, 2, 0, 0, 0, 2e-3, 2e-4),
    ("unet-8", 1_829_025, 458_353, 1, 1.5, 0, 2, 0, 2e-3, 1e-3),
    ("pix2pix-9", 1_829_025, 2_764_609, 1, 1.5, 0, 0, 0, 5e-5, 2e-5),
    ("pix2pix-10", 1_829_025, 2_764_609, 1, 0, 1.5, 0, 0, 5e-5, 2e-5),
    ("pix2pix-11", 1_829_025, 2_764_609, 1, 1.5, 0, 0, 1, 5e-5, 2e-5),
]
# Table 2: name, parameters, L1, L2, perceptual.
TABLE_2 = [
    ("fcn-1", 308_545, 0, 1, 0),
    ("fcn-2", 155_681, 0, 1, 0),
    ("dcsrn-l1", 53_977, 1, 0, 0),
    ("dcsrn-l2", 53_977, 0, 1, 0),
    ("dcsrn-perceptual", 53_977, 0, 0, 1),
]


def weights(loss):
    """(BCE, L1, L2, gradient, perceptual), as Table 1 has them."""
    l1 = loss.lambda_recon if loss.recon == "l1" else 0
    l2 = loss.lambda_recon if loss.recon == "l2" else 0
    return loss.lambda_bce, l1, l2, loss.lambda_gradient, loss.lambda_perceptual


@pytest.mark.parametrize("row", TABLE_1, ids=lambda row: row[0])
def test_table_1(row):
    name, generator, discriminator, *lambdas, lr_generator, lr_discriminator = row
    config, listed = preset(name), describe(name)
    assert listed["generator_parameters"] == generator
    assert listed["discriminator_parameters"] == discriminator
    assert weights(config.loss) == tuple(lambdas)
    assert (config.optim.lr_generator, config.optim.lr_discriminator) == (
        lr_generator,
        lr_discriminator,
    )
    assert (config.train.epochs, config.train.batch_size, config.stitch.trim) == (30, 32, 0)
    assert config.optim.schedule == "constant"
    assert config.generator.output == "linear" and not config.generator.residual
    assert config.generator.sharpen == ("3x3" if name == "unet-6" else "none")
    assert config.discriminator.conditional == name.startswith("pix2pix")


@pytest.mark.parametrize("row", TABLE_2, ids=lambda row: row[0])
def test_table_2(row):
    name, parameters, l1, l2, perceptual = row
    config = preset(name)
    assert describe(name)["generator_parameters"] == parameters
    assert not config.adversarial
    assert weights(config.loss) == (0, l1, l2, 0, perceptual)
    assert config.optim.lr_generator == 1e-3
    assert (config.train.epochs, config.train.batch_size, config.stitch.trim) == (10, 32, 4)


def test_the_names_are_the_papers_and_those_of_what_it_leaves_for_later():
    papers = [row[0] for row in TABLE_1] + [row[0] for row in TABLE_2]
    assert list(PRESETS) == [*papers, *OURS]


@pytest.mark.parametrize("name", ["srcnn", "edsr", "rdn", "drcn", "srfbn"])
def test_later_networks_are_trained_as_the_cnns(name):
    config, cnn = preset(name), preset("dcsrn-l1")
    assert (config.loss, config.optim, config.train) == (cnn.loss, cnn.optim, cnn.train)
    assert GENERATORS[name] == config.generator


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_json(name):
    config = validate(preset(name))
    assert from_json(to_json(config)) == config
    assert describe(name)["preset"] == name


@pytest.mark.parametrize("patch_size", [(32, 32), (32, 32, 32)], ids=str)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_serve_other_patches(name, patch_size):
    config = with_overrides(preset(name), {"data.patch_size": patch_size})
    build_generator(config.generator, patch_size)
    if config.adversarial:
        build_discriminator(config.discriminator, patch_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_presets_of_blocks_train_and_predict(name, tmp_path):
    cohort = write_phantom_cohort(tmp_path / "cohort", specimens=5, shape=(56, 52, 48), seed=3)
    shards = replace(BLOCKS[name], patches_per_specimen=2)
    write_shards(read_cohort(cohort), tmp_path / "shards", shards, workers=1)
    changes = {
        "data.shards": str(tmp_path / "shards"),
        "train.epochs": 1,
        "train.batch_size": 2,
        "train.precision": "no",
        "train.device": "cpu",
        "tracking.mode": "disabled",
        "tracking.samples": 1,
    }
    if name == "best-gpu":
        # As wide as for a GPU it would take a processor half a minute.
        changes |= {"generator.features": 16, "generator.blocks": 3}
    result = train(with_overrides(preset(name), changes), tmp_path / "run")
    assert math.isfinite(result.best_score)
    source = np.random.default_rng(0).normal(size=(56, 52, 48)).astype(np.float32)
    synthetic = load_predictor(result.best, "cpu")(source, quiet=True)
    assert synthetic.shape == source.shape and np.isfinite(synthetic).all()


def test_blocks_are_of_32_and_48_voxels_a_side():
    sides = {name: config.patch_size[0] for name, config in BLOCKS.items()}
    assert sides == {"unet-3d": 48, "gan-3d": 32, "quick": 32, "best": 32, "best-gpu": 32}
    for name, shards in BLOCKS.items():
        assert shards.stride == preset(name).stitch.stride
    gan = describe("gan-3d")
    # 3D: a head, eight convolutions in blocks, one after them and the tail, all of kernel 3.
    assert gan["generator_parameters"] == 27 * 16 + 16 + 9 * (27 * 256 + 16) + 27 * 16 + 1
    # Two channels, four convolutions of kernel 4; the affine norms take the biases' place.
    weights = 64 * (2 * 16 + 16 * 32 + 32 * 64 + 64)
    assert gan["discriminator_parameters"] == weights + 16 + 1 + 2 * (32 + 64)
    assert describe("unet-3d")["discriminator"] is None


def test_the_page_of_networks_has_their_sizes_and_reach():
    page = (Path(__file__).parents[1] / "docs" / "networks.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([\w-]+)` \| `([\w-]+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|", page, re.M
    )
    assert {row[0] for row in rows} == set(GENERATORS)
    for name, family, *numbers in rows:
        assert GENERATORS[name].family == family
        with torch.device("meta"):
            built = [
                build_generator(GENERATORS[name], sides, channels)
                for sides, channels in (((64, 64), 1), ((64, 64), 3), ((32, 32, 32), 1))
            ]
        sizes = [f"{parameter_count(network):,}" for network in built]
        reach = built[0].reach
        assert numbers == [*sizes, "-" if reach is None else str(reach)], name


def test_a_listing_row():
    assert describe("unet-6") == {
        "preset": "unet-6",
        "generator": "unet 16-32-64-128-128-128, sharpened 3x3",
        "generator_parameters": 1_829_025,
        "discriminator": "conv 16-64-128-196",
        "discriminator_parameters": 458_353,
        "losses": "1 bce + 1.5 l1 + 2 gradient",
        "lr_generator": 2e-3,
        "lr_discriminator": 2e-4,
        "epochs": 30,
        "minutes": None,
    }
    assert (describe("best")["minutes"], describe("best")["generator_parameters"]) == (30, 290_664)
    small = describe("small")
    assert small["generator"].endswith(", residual")
    assert (small["discriminator"], small["lr_discriminator"]) == ("conv 8-16-32", 2e-4)
    cnn = describe("dcsrn-l1")
    assert (cnn["discriminator"], cnn["lr_discriminator"]) == (None, None)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ConfigError, match=r"unet7 is not a preset; did you mean unet-7\?"):
        preset("unet7")
    with pytest.raises(ConfigError, match=r"not a preset \(presets: dcgan-1, "):
        preset("quxx")

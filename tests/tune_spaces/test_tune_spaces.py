"""Everything that a search space can give must be a configuration that can run."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from distsynth.config import dotted_fields, with_overrides
from distsynth.models import build_generator
from distsynth.presets import preset
from tune_spaces.architectures import GENERATORS, conv_stacks, networks, shard_sets, unets
from tune_spaces.everything import everything
from tune_spaces.loss_weights import TABLE_1, loss_weights
from tune_spaces.registry import SPACES


def draw(space: dict[str, Any], seed: int) -> dict[str, Any]:
    """Hyperparameters drawn at random."""
    state = np.random.default_rng(seed)
    return {field: domain.sample(random_state=state) for field, domain in space.items()}


# --- the named spaces


@pytest.mark.parametrize("start", ["unet-7", "dcgan-1", "small"])
@pytest.mark.parametrize("name", SPACES)
def test_sampled_hyperparameters_are_valid(name: str, start: str) -> None:
    space = SPACES[name]()
    for seed in range(50):
        # Whole networks are resolved elsewhere; only their names are ours.
        hyperparameters = {
            field: value for field, value in draw(space, seed).items() if "." in field
        }
        config = with_overrides(preset(start), hyperparameters)
        found = dict(dotted_fields(config))
        assert {field: found[field] for field in hyperparameters} == hyperparameters


def test_sampled_hyperparameters_differ() -> None:
    space = everything()
    candidates = [draw(space, seed) for seed in range(50)]
    assert len({tuple(hyperparameters.values()) for hyperparameters in candidates}) == 50
    for field in space.keys() - {"loss.perceptual_network"}:
        assert len({hyperparameters[field] for hyperparameters in candidates}) > 1, field


def test_some_pairs_count_in_every_draw() -> None:
    assert not loss_weights()["loss.lambda_recon"].is_valid(0)
    for field in ("loss.lambda_bce", "loss.lambda_gradient"):
        assert loss_weights()[field].is_valid(0)


def test_the_perceptual_weight_comes_with_its_network() -> None:
    network = "loss.perceptual_network"
    assert set(TABLE_1) - set(loss_weights()) == {"loss.lambda_perceptual"}
    for name in ("vgg16", "cohort"):
        space = loss_weights(name)
        assert set(space) == {*TABLE_1, network}
        assert space[network].categories == [name]
    assert everything()[network].categories == ["cohort"]
    assert "loss.lambda_perceptual" not in everything(perceptual=None)


@pytest.mark.parametrize("name", ["dcgan-1", "unet-5", "pix2pix-11", "small"])
def test_hand_tuned_weights_are_in_the_space(name: str) -> None:
    found = dict(dotted_fields(preset(name)))
    for field, domain in loss_weights("vgg16").items():
        assert domain.is_valid(found[field]), field


def test_networks_are_names_and_none_only_when_asked() -> None:
    assert networks()["generator"].categories == list(GENERATORS)
    assert "none" not in networks()["discriminator"].categories
    assert "none" in networks(without=True)["discriminator"].categories


@pytest.mark.parametrize("space", [conv_stacks(), unets()], ids=["conv_stacks", "unets"])
def test_every_combination_of_parts_builds(space: dict[str, Any]) -> None:
    for channels in space["generator.channels"].categories:
        # Only a stack of convolutions has kernels to choose.
        kernels = space.get("generator.kernels")
        for kernel in kernels.categories if kernels else [None]:
            for norm in SPACES["normalisation"]()["generator.norm"].categories:
                hyperparameters = {
                    "generator.family": space["generator.family"].categories[0],
                    "generator.channels": channels,
                    "generator.norm": norm,
                }
                if kernel:
                    hyperparameters["generator.kernels"] = kernel
                config = with_overrides(preset("dcgan-1"), hyperparameters)
                for side in (32, 64):
                    with torch.device("meta"):
                        build_generator(config.generator, (side, side))


def test_unets_hold_the_papers() -> None:
    assert preset("unet-7").generator.channels in unets()["generator.channels"].categories


def test_shard_sets() -> None:
    assert shard_sets("a32", "s3://b/64")["data.shards"].categories == ["a32", "s3://b/64"]
    for folders in [(), ("a", "a")]:
        with pytest.raises(ValueError, match=r"data\.shards must have one or more distinct"):
            shard_sets(*folders)


def test_importing_the_package_does_not_wait_for_ray() -> None:
    code = "import sys, tune_spaces; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- zero or log


# --- searchers


# --- the plain form


# --- files


# --- names

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray import tune

from distsynth.config import dotted_fields, with_overrides
from distsynth.errors import ConfigError
from distsynth.models import NoDiscriminatorConfig
from distsynth.presets import (
    ADVERSARIAL,
    DISCRIMINATORS,
    GENERATORS,
    SMALL_DISCRIMINATOR,
    preset,
)
from distsynth.sweep.hyperparameters import (
    configure,
    draw,
    draw_candidates,
    grid_candidates,
    invalid,
    manifest_of,
    plain,
)
from distsynth.sweep.plan import SweepConfig, SweepPlan
from distsynth.sweep.run import _planned_trials
from distsynth.sweep.space import check_shards, check_space
from sharding.shards.write import write_shards
from sharding.volumes.cohort import read_cohort
from tune_spaces.everything import everything
from tune_spaces.learning_rates import learning_rates
from tune_spaces.loss_forms import ADVERSARIAL as ADVERSARIAL_NAMES
from tune_spaces.loss_weights import loss_weights
from tune_spaces.plain import space_to_plain
from tune_spaces.registry import SPACES

UNET = preset("unet-7")
SMALL = preset("small")
CNN = preset("fcn-1")
NO_PAIRS = "loss must be more than terms of the discriminator"


# --- hyperparameters as a configuration


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("discriminator", DISCRIMINATORS)
def test_whole_networks_come_by_name(generator, discriminator):
    config = configure(UNET, {"generator": generator, "discriminator": discriminator})
    assert config.generator == GENERATORS[generator]
    assert config.discriminator == DISCRIMINATORS[discriminator]
    changed = {"generator": UNET.generator, "discriminator": UNET.discriminator, "loss": UNET.loss}
    assert replace(config, **changed) == UNET


@pytest.mark.parametrize("order", [1, -1])
def test_dotted_fields_go_on_top_of_a_whole_network(order):
    hyperparameters = {
        "generator": "unet",
        "generator.norm": "instance",
        "discriminator.norm": "none",
    }
    config = configure(SMALL, dict(list(hyperparameters.items())[::order]))
    assert config.generator == replace(GENERATORS["unet"], norm="instance")
    assert config.discriminator == replace(SMALL_DISCRIMINATOR, norm="none")


def test_hyperparameters_change_nothing_else():
    hyperparameters = {"loss.lambda_gradient": 0.5, "train.batch_size": 8}
    config = configure(UNET, hyperparameters)
    before, now = dict(dotted_fields(UNET)), dict(dotted_fields(config))
    assert {name: value for name, value in now.items() if before[name] != value} == hyperparameters
    assert configure(UNET, {}) == UNET


def test_without_a_discriminator_its_weight_is_zero():
    for hyperparameters in ({"discriminator": "none"}, {"discriminator.family": "none"}):
        config = configure(UNET, hyperparameters | {"loss.lambda_bce": 0.7})
        assert not config.adversarial
        assert config.loss.lambda_bce == 0
    assert configure(CNN, {"loss.lambda_bce": 0.7}).loss.lambda_bce == 0


@pytest.mark.parametrize("base", [UNET, SMALL, CNN], ids=["unet-7", "small", "fcn-1"])
def test_without_its_weight_there_is_no_discriminator(base):
    hyperparameters = {
        "discriminator": "pix2pix",
        "discriminator.norm": "none",
        "loss.lambda_bce": 0.0,
    }
    assert configure(base, hyperparameters).discriminator == NoDiscriminatorConfig()
    kept = configure(base, hyperparameters, keep_discriminator=True)
    assert kept.discriminator == replace(DISCRIMINATORS["pix2pix"], norm="none")
    assert kept.loss.lambda_bce == 0


def test_a_discriminator_that_is_none_is_not_kept():
    config = configure(
        UNET, {"discriminator": "none", "loss.lambda_bce": 1.0}, keep_discriminator=True
    )
    assert not config.adversarial
    assert config.loss.lambda_bce == 0


def test_shards_bring_their_patch_size(shard_folder):
    base = with_overrides(UNET, {"data.patch_size": (64, 48), "stitch.stride": 8})
    config = configure(base, {"data.shards": str(shard_folder), "train.seed": 3})
    assert config.data.shards == str(shard_folder)
    assert config.data.patch_size == (16, 16)
    assert config.data.neighbours == 0
    assert configure(base, {}).data.patch_size == (64, 48)


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"generator": "resnet"}, "generator must be one of dcgan-1, dcgan-2, .*, got resnet"),
        ({"discriminator": "unet"}, "discriminator must be one of dcgan-1, .* none, got unet"),
        ({"loss.lambda_bc": 1.0}, r"loss\.lambda_bc is not a field .* mean loss\.lambda_bce\?"),
        ({"loss.lambda_bce": -1.0}, r"loss\.lambda_bce must be >= 0, got -1"),
        ({"loss.lambda_recon": 0.0}, f"^{NO_PAIRS}"),
        ({"generator": "unet", "generator.kernels": (3,)}, "kernels is not a field of a unet"),
    ],
)
def test_hyperparameters_that_cannot_be_run_are_refused(hyperparameters, message):
    with pytest.raises(ConfigError, match=message) as caught:
        configure(UNET, hyperparameters)
    assert invalid(UNET, hyperparameters) == str(caught.value)


def test_valid_hyperparameters_have_no_reason_against_them():
    assert invalid(UNET, {"loss.lambda_recon": 0.5}) is None


def test_values_become_plain():
    values = plain([np.float64(0.5), np.int64(3), np.array([1, 2]), ["a", (np.bool_(True),)], None])
    assert values == (0.5, 3, (1, 2), ("a", (True,)), None)
    assert [type(value) for value in values[:2]] == [float, int]
    assert type(values[2][0]) is int


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_losses_come_by_name_with_what_they_need(name):
    start = with_overrides(UNET, {"discriminator.spectral_norm": True, "loss.adversarial": "hinge"})
    config = configure(start, {"adversarial": name})
    made = dict(dotted_fields(config))
    assert {field: made[field] for field in ADVERSARIAL[name]} == ADVERSARIAL[name]
    plain = configure(start, {"adversarial": name, "loss.lambda_bce": 0.0})
    assert not plain.adversarial and plain.loss.lambda_bce == 0


def test_the_names_of_the_space_are_those_that_are_defined():
    assert set(ADVERSARIAL_NAMES) == set(ADVERSARIAL)
    with pytest.raises(ConfigError, match=r"adversarial must be one of bce, .*, got wgan"):
        configure(UNET, {"adversarial": "wgan"})


def test_without_a_discriminator_its_features_are_not_matched():
    matched = {"loss.lambda_matching": 1.0}
    assert configure(UNET, matched).loss.lambda_matching == 1
    config = configure(UNET, {**matched, "loss.lambda_bce": 0.0})
    assert not config.adversarial and config.loss.lambda_matching == 0


# --- drawing

BASES = {"unet-7": UNET, "small": SMALL, "dcgan-1": preset("dcgan-1")}


@pytest.mark.parametrize("keep_discriminator", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_drawn_candidates_can_be_run_and_lie_in_the_space(base, keep_discriminator):
    space = everything()
    candidates, refused = draw_candidates(space, BASES[base], 60, 0, keep_discriminator)
    assert len(candidates) == 60
    assert not refused
    for hyperparameters in candidates:
        configure(BASES[base], hyperparameters, keep_discriminator)
        assert list(hyperparameters) == list(space)
        assert all(domain.is_valid(hyperparameters[name]) for name, domain in space.items())
        assert json.loads(json.dumps(hyperparameters)) == hyperparameters


def test_no_draw_from_the_space_of_everything_is_refused():
    _, refused = draw_candidates(everything(), UNET, 500, 7)
    assert refused == []


def test_a_seed_fixes_the_candidates():
    space = everything()
    candidates = draw_candidates(space, UNET, 20, 4)[0]
    assert draw_candidates(space, UNET, 20, 4)[0] == candidates
    assert draw_candidates(space, UNET, 12, 4)[0] == candidates[:12]
    other = draw_candidates(space, UNET, 20, 5)[0]
    assert not [hyperparameters for hyperparameters in other if hyperparameters in candidates]


def test_hyperparameters_that_cannot_be_run_are_drawn_anew():
    space = {"loss.lambda_recon": tune.choice([0.0, 1.0]), "train.seed": tune.randint(0, 10**6)}
    candidates, refused = draw_candidates(space, UNET, 30, 1)
    assert {hyperparameters["loss.lambda_recon"] for hyperparameters in candidates} == {1.0}
    assert 10 < len(refused) < 60
    assert set(refused) == {invalid(UNET, {"loss.lambda_recon": 0.0})}


def test_tuples_stay_tuples():
    hyperparameters = draw(SPACES["conv-stacks"](), np.random.default_rng(0))
    assert type(hyperparameters["generator.channels"]) is tuple
    assert type(hyperparameters["generator.channels"][0]) is int


def test_a_grid_goes_through_the_last_field_first():
    space = {
        "loss.recon": tune.choice(["l1", "l2"]),
        "train.batch_size": tune.choice([8, 16, 32]),
        "generator.channels": tune.choice([[8, 16, 32, 64]]),
    }
    widths = (8, 16, 32, 64)
    assert grid_candidates(space, UNET) == [
        {"loss.recon": recon, "train.batch_size": size, "generator.channels": widths}
        for recon in ("l1", "l2")
        for size in (8, 16, 32)
    ]


def test_a_grid_of_ranges_is_refused():
    space = {"train.seed": tune.choice([0, 1]), **learning_rates()}
    rule = r"^optim\.lr_generator must be a choice for a grid search, got \(5e-06, 0\.02\): list"
    with pytest.raises(ConfigError, match=rule):
        grid_candidates(space, UNET)
    with pytest.raises(ConfigError, match=r"^loss\.lambda_bce must be a choice .* got 0 or \("):
        grid_candidates(loss_weights(), UNET)


def test_a_grid_names_the_hyperparameters_that_cannot_be_run():
    space = {
        "loss.lambda_recon": tune.choice([0.0, 1.0]),
        "loss.lambda_gradient": tune.choice([1.0, 0.0]),
    }
    with pytest.raises(ConfigError) as caught:
        grid_candidates(space, UNET)
    hyperparameters = {"loss.lambda_recon": 0.0, "loss.lambda_gradient": 0.0}
    assert str(caught.value).startswith(
        f"the grid contains {hyperparameters}, which cannot be run: {NO_PAIRS}"
    )


# --- checking a space


# --- presets


# --- changing on the way


# --- shards of a space


@pytest.fixture(scope="module")
def larger_patches(phantom_cohort, small_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("larger") / "shards"
    larger = replace(small_shards, patch_size=(24, 16), patches_per_specimen=4)
    write_shards(read_cohort(phantom_cohort), folder, larger, workers=1)
    return folder


def test_each_shard_set_of_a_space_brings_its_own_patches(shard_folder, larger_patches):
    both = [str(shard_folder), str(larger_patches)]
    check_shards(both)
    space = {"data.shards": tune.choice(both)}
    base = with_overrides(UNET, {"stitch.stride": 8})
    check_space(space, base)
    sizes = [
        configure(base, hyperparameters).data.patch_size
        for hyperparameters in grid_candidates(space, base)
    ]
    assert sizes == [(16, 16), (24, 16)]


def test_patches_too_small_to_stitch_are_found_before_the_search(shard_folder):
    space = {"data.shards": tune.choice([str(shard_folder)])}
    with pytest.raises(ConfigError, match=r"^data\.shards: .* stitch\.stride must be at most"):
        check_space(space, UNET)


def other_rows(shards: Path, folder: Path, change: str) -> str:
    shutil.copytree(shards, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    rows = manifest["specimens"]
    if change == "split":
        names = [row["split"] for row in rows]
        first, second = names.index("train"), names.index("val")
        rows[first]["split"], rows[second]["split"] = "val", "train"
    elif change == "scan":
        rows[0]["target_sha256"] = "0" * 64
    elif change == "name":
        rows[0]["name"] += "-again"
    path.write_text(json.dumps(manifest))
    return str(folder)


@pytest.mark.parametrize("change", ["split", "scan", "name"])
def test_shards_of_other_specimens_or_splits_are_refused(change, shard_folder, tmp_path):
    other = other_rows(shard_folder, tmp_path / change, change)
    manifest_of(other)
    same = other_rows(shard_folder, tmp_path / "same", "nothing")
    check_shards([str(shard_folder), same])
    message = f"data.shards: {other} must hold the specimens and splits of {shard_folder}: shard"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        check_shards([str(shard_folder), same, other])


def test_trials_that_would_be_the_same_are_left_out_and_said(caplog):
    space = {"train.seed": tune.choice([1, 2, 3])}
    plan = SweepPlan("seeds", "id", UNET, space_to_plain(space), SweepConfig(trials=20))
    with caplog.at_level("WARNING"):
        planned = _planned_trials(plan, space, {})
    assert sorted(record.hyperparameters["train.seed"] for record in planned.values()) == [1, 2, 3]
    assert "only 3 of 20 trials are run" in caplog.text

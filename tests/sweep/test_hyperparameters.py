from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import tune

from distsynth.config import dotted_fields, with_overrides
from distsynth.errors import ConfigError
from distsynth.models import NoDiscriminatorConfig
from distsynth.presets import (
    ADVERSARIAL,
    DISCRIMINATORS,
    GENERATORS,
    PRESETS,
    SMALL_DISCRIMINATOR,
    preset,
)
from distsynth.sweep.hyperparameters import (
    bounded,
    configure,
    draw,
    draw_candidates,
    grid_candidates,
    hyperparameters_of,
    invalid,
    manifest_of,
    mutations,
    plain,
)
from distsynth.sweep.plan import SweepConfig, SweepPlan
from distsynth.sweep.run import _planned_trials
from distsynth.sweep.space import COMPARED, check_grid, check_shards, check_space, presets_in
from sharding.shards.write import write_shards
from sharding.volumes.cohort import read_cohort
from tune_spaces.architectures import networks, sharpening
from tune_spaces.domains import zero_or_log
from tune_spaces.everything import everything
from tune_spaces.learning_rates import learning_rates
from tune_spaces.loss_forms import ADVERSARIAL as ADVERSARIAL_NAMES
from tune_spaces.loss_forms import adversarial_losses
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


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", SPACES)
def test_every_named_space_can_be_searched(name, base):
    check_space(SPACES[name](), BASES[base])


@pytest.mark.parametrize("without", [False, True])
def test_networks_with_all_else_can_be_searched(without):
    space = {**loss_weights(), **learning_rates(), **networks(without), **sharpening()}
    check_space(space, UNET)


def test_a_space_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="the space is empty: name one or more spaces"):
        check_space({}, UNET)


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("loss.lambda_bec", "loss.lambda_bce"),
        ("lr_generator", "optim.lr_generator"),
        ("generator.chanels", "generator.channels"),
    ],
)
def test_a_misspelt_field_is_told_with_the_nearest(field, nearest):
    message = f"{field} is not a field of the configuration; did you mean {nearest}?"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check_space({**learning_rates(), field: tune.uniform(0, 1)}, UNET)


@pytest.mark.parametrize(
    ("field", "option", "reason"),
    [
        ("generator", "resnet", "generator must be one of"),
        ("generator.norm", "group", "generator.norm: "),
        ("train.batch_size", 0, "train.batch_size must be >= 1, got 0"),
        ("discriminator.kernels", (3, 3), "discriminator.kernels must be 1 or 4 sizes"),
    ],
)
def test_an_option_that_never_goes_is_named(field, option, reason):
    good = dict(dotted_fields(UNET)).get(field, "unet")
    space = {"train.seed": tune.randint(0, 9), field: tune.choice([good, option])}
    start = re.escape(f"{field}: {option} makes no configuration that runs: {reason}")
    with pytest.raises(ConfigError, match=f"^{start}"):
        check_space(space, UNET)


def test_a_field_of_another_family_is_refused_unless_the_space_switches_to_it():
    kernels = {"generator.kernels": tune.choice([(3,), (5,)])}
    with pytest.raises(ConfigError, match="kernels is not a field of a unet generator, only of"):
        check_space(kernels, UNET)
    space = kernels | {"generator.family": tune.choice(["conv"])}
    check_space(space, UNET)
    assert configure(UNET, draw(space, np.random.default_rng(0))).generator.family == "conv"


@pytest.mark.parametrize(
    ("field", "domain", "message"),
    [
        ("loss.lambda_gradient", tune.uniform(-1, 1), "-1.0 makes .* must be >= 0, got -1.0"),
        ("loss.lambda_bce", tune.quniform(-1, 1, 0.5), "-1.0 makes .* must be >= 0, got -1.0"),
        ("optim.beta1", tune.uniform(0.5, 1.5), r"1.5 makes .* must be in \[0, 1\), got 1.5"),
        ("train.batch_size", tune.randint(0, 9), "0 makes no .* train.batch_size must be"),
        ("data.workers", tune.randint(0, 10**6), "999999 makes no .* from 0 to 256"),
        ("train.objective", tune.choice(["psnr", "mse"]), "cannot be searched: .*--objective"),
        ("train.seam_penalty", tune.uniform(0, 1), "cannot be searched: .*--seam-penalty"),
        ("tracking.project", tune.choice(["a", "b"]), "cannot be searched: it changes no number"),
        ("data.patch_size", tune.choice([(8, 8)]), r"cannot be searched: .* search data\.shards"),
    ],
)
def test_a_domain_that_reaches_beyond_a_rule_is_refused(field, domain, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(field)}.*{message}"):
        check_space({**loss_weights(), **learning_rates(), field: domain}, UNET)


@pytest.mark.parametrize(
    "domain",
    [tune.uniform(0, 1), tune.randint(0, 2), tune.qrandint(0, 4, 2), zero_or_log(0.1, 1)],
)
def test_a_domain_that_ends_at_a_rule_is_taken(domain):
    check_space({"loss.lambda_gradient": domain}, UNET)


def test_a_grid_is_not_searched_at_random():
    grid = {"train.seed": tune.grid_search([0, 1]), "optim.lr_generator": tune.uniform(1e-4, 1e-3)}
    for search in ("random", "optuna"):
        with pytest.raises(
            ConfigError, match=rf"train\.seed is a grid, of which a {search} search"
        ):
            check_grid(grid, search)
    check_grid(grid, "grid")
    check_grid(learning_rates(), "random")


def test_a_rare_option_that_goes_with_few_others_is_kept():
    """Five kernels go with four widths alone: one set in twelve hundred."""
    widths = [(8,) * depth for depth in range(1, 21)]
    kernels = [*((size,) for size in range(1, 121, 2)), (3, 3, 3, 3, 3)]
    space = {
        "generator": tune.choice(["dcgan-1"]),
        "generator.channels": tune.choice(widths),
        "generator.kernels": tune.choice(kernels),
    }
    check_space(space, UNET)


def test_a_space_that_is_mostly_in_vain_is_refused():
    space = {"loss.lambda_recon": zero_or_log(0.1, 1, zero=0.9)}
    with pytest.raises(ConfigError) as caught:
        check_space(space, UNET)
    found = re.match(
        r"(\d+) of 200 candidates drawn from the space make no valid configuration; "
        r"most often \((\d+)\): "
        f"{NO_PAIRS}",
        str(caught.value),
    )
    assert found
    assert found[1] == found[2]
    assert 160 < int(found[1]) < 200
    check_space({"loss.lambda_recon": zero_or_log(0.1, 1, zero=0.1)}, UNET)


# --- presets


def tuned() -> dict[str, Any]:
    return {**loss_weights(), **learning_rates()}


def test_presets_that_differ_in_weights_and_rates_lie_in_that_space():
    found = presets_in(tuned(), UNET)
    assert list(found) == ["unet-5", "unet-7", "unet-8"]
    assert found["unet-8"] == {
        "loss.lambda_bce": 1.0,
        "loss.lambda_recon": 1.5,
        "loss.lambda_gradient": 2.0,
        "optim.lr_generator": 2e-3,
        "optim.lr_discriminator": 1e-3,
    }


@pytest.mark.parametrize(
    ("space", "names"),
    [
        (
            # The networks of the DCGANs are in it, but not their beta1, which is not searched.
            {**tuned(), **networks()},
            "unet-5 unet-7 unet-8 pix2pix-9",
        ),
        ({**tuned(), **sharpening()}, "unet-5 unet-6 unet-7 unet-8"),
        (
            {
                **loss_weights("vgg16"),
                **learning_rates(),
                **networks(),
                **sharpening(),
                "loss.recon": tune.choice(["l1", "l2"]),
                "optim.beta1": tune.choice([0.5, 0.9]),
                "train.seed": tune.choice([0, 1]),
            },
            "dcgan-1 dcgan-2 dcgan-3 dcgan-4 unet-5 unet-6 unet-7 unet-8 "
            "pix2pix-9 pix2pix-10 pix2pix-11",
        ),
        (learning_rates(), "unet-7"),
        # Whose features they are says nothing about a term without weight.
        ({**loss_weights("cohort"), **learning_rates()}, "unet-5 unet-7 unet-8"),
        ({**tuned(), **adversarial_losses()}, "unet-5 unet-7 unet-8"),
        (loss_weights(), "unet-5 unet-7"),
        ({"loss.lambda_gradient": tune.uniform(0, 1)}, "unet-7"),
        ({"loss.lambda_gradient": tune.uniform(1, 2)}, ""),
        ({**tuned(), "train.seed": tune.choice([1, 2])}, ""),
    ],
)
def test_presets_lie_where_the_space_can_give_just_them(space, names):
    found = presets_in(space, UNET)
    assert list(found) == names.split()
    for name, hyperparameters in found.items():
        assert all(space[field].is_valid(value) for field, value in hyperparameters.items())
        made = dict(dotted_fields(configure(UNET, hyperparameters)))
        wanted = dict(dotted_fields(PRESETS[name]))
        if not wanted["loss.lambda_perceptual"]:
            del made["loss.perceptual_network"]
        assert not [f for f in made if f.startswith(COMPARED) and made[f] != wanted[f]]


def test_no_preset_of_the_table_lies_in_a_space_over_another_network():
    assert presets_in(tuned(), SMALL) == {}
    assert presets_in(loss_weights("vgg16"), CNN) == {}


# --- changing on the way


def test_only_weights_and_rates_can_be_mutated():
    mutable = {**loss_weights(), **learning_rates()}
    fixed = {"loss.recon": tune.choice(["l1", "l2"]), "optim.beta1": tune.uniform(0, 0.9)}
    assert mutations({**networks(), **fixed, **mutable}) == mutable
    rule = "pbt needs a loss weight or a learning rate in the space"
    for others in (networks(), fixed):
        with pytest.raises(ConfigError, match=rule):
            mutations(others)


@settings(deadline=None)
@given(
    st.fixed_dictionaries({name: st.floats(0, 1e3) for name in loss_weights()}),
    st.fixed_dictionaries({name: st.floats(1e-9, 10) for name in learning_rates()}),
)
def test_bounded_values_are_in_their_domains_and_as_near_as_can_be(weights, rates):
    space = tuned()
    before = {**weights, **rates, "generator": "unet"}
    after = bounded({**space, **networks()}, before)
    for name, domain in space.items():
        assert domain.is_valid(after[name]), name
        if domain.is_valid(before[name]):
            assert after[name] == before[name]
        elif before[name] > domain.upper:
            assert after[name] == domain.upper
        else:
            assert after[name] == (0 if domain.is_valid(0) else domain.lower)
    assert after["generator"] == "unet"
    assert bounded(space, after) == after


def test_a_weight_of_zero_stays_valid_and_zero():
    space = {"loss.lambda_bce": zero_or_log(0.1, 1), "loss.lambda_recon": tune.uniform(0.5, 2)}
    assert bounded(space, {"loss.lambda_bce": 0.0, "loss.lambda_recon": 2.4}) == {
        "loss.lambda_bce": 0.0,
        "loss.lambda_recon": 2.0,
    }
    never = {"loss.lambda_bce": zero_or_log(0.1, 1, zero=0)}
    assert bounded(never, {"loss.lambda_bce": 0.08}) == {"loss.lambda_bce": 0.1}


def test_bounding_leaves_the_given_hyperparameters_as_they_were():
    hyperparameters = {"loss.lambda_recon": 9.0, "train.seed": 1}
    assert (
        bounded({"loss.lambda_recon": tune.uniform(0, 2)}, hyperparameters)["loss.lambda_recon"]
        == 2
    )
    assert hyperparameters == {"loss.lambda_recon": 9.0, "train.seed": 1}


@pytest.mark.parametrize(
    ("domain", "value"),
    [
        (tune.randint(1, 5), 6),
        (tune.quniform(0, 3, 0.5), 1.2),
        (tune.qrandint(2, 8, 2), 5),
    ],
    ids=["randint", "quniform", "qrandint"],
)
def test_bounded_values_are_such_as_the_domain_draws(domain, value):
    rng = np.random.default_rng(0)
    drawn = {plain(domain.sample(random_state=rng)) for _ in range(200)}
    space = {"loss.lambda_recon": domain}
    assert bounded(space, {"loss.lambda_recon": value})["loss.lambda_recon"] in drawn


@pytest.mark.parametrize("seed", range(5))
def test_the_hyperparameters_of_a_configuration_are_those_it_was_made_of(seed):
    space = {**tuned(), **sharpening(), **networks(), "train.seed": tune.randint(0, 100)}
    hyperparameters = draw_candidates(space, UNET, 1, seed, keep_discriminator=True)[0][0]
    config = configure(UNET, hyperparameters, keep_discriminator=True)
    names = {
        "generator": hyperparameters["generator"],
        "discriminator": hyperparameters["discriminator"],
    }
    assert hyperparameters_of(config, dict.fromkeys(hyperparameters) | names) == hyperparameters


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
    assert "3 of 20 trials are planned" in caplog.text

"""Spaces that cannot be searched, and hyperparameters that no trial can run."""

from __future__ import annotations

import re

import numpy as np
import pytest
from ray import tune

from distsynth.config import dotted_fields
from distsynth.errors import ConfigError
from distsynth.presets import (
    preset,
)
from distsynth.sweep.hyperparameters import (
    configure,
    draw,
)
from distsynth.sweep.space import check_grid, check_space
from tune_spaces.architectures import networks, sharpening
from tune_spaces.domains import zero_or_log
from tune_spaces.learning_rates import learning_rates
from tune_spaces.loss_weights import loss_weights
from tune_spaces.registry import SPACES

UNET = preset("unet-7")

SMALL = preset("small")

CNN = preset("fcn-1")

NO_PAIRS = "loss must be more than terms of the discriminator"

BASES = {"unet-7": UNET, "small": SMALL, "dcgan-1": preset("dcgan-1")}


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

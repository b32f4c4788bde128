"""Presets as the first points of a space, and values that are moved into its bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import tune

from distsynth.config import dotted_fields
from distsynth.errors import ConfigError
from distsynth.presets import (
    PRESETS,
    preset,
)
from distsynth.sweep.hyperparameters import (
    bounded,
    configure,
    draw_candidates,
    hyperparameters_of,
    mutations,
    plain,
)
from distsynth.sweep.space import COMPARED, presets_in
from tune_spaces.architectures import networks, sharpening
from tune_spaces.domains import zero_or_log
from tune_spaces.learning_rates import learning_rates
from tune_spaces.loss_forms import adversarial_losses
from tune_spaces.loss_weights import loss_weights

UNET = preset("unet-7")

SMALL = preset("small")

CNN = preset("fcn-1")


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

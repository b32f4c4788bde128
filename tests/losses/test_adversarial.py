"""Adversarial losses by hand."""

from __future__ import annotations

import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from losses_by_hand import cross_entropy

from distsynth.losses.adversarial import ADVERSARIAL_LOSSES, CrossEntropy
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.registry import LossConfig


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 3, 2), (4, 1, 2, 2, 2)])
def test_adversarial_losses_by_hand(shape):
    real, fake = np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32) * 3
    both = (cross_entropy(real, 1) + cross_entropy(fake, 0)) / 2
    loss = CrossEntropy()
    discriminator = loss.discriminator(torch.from_numpy(real), torch.from_numpy(fake))
    assert discriminator.item() == pytest.approx(both, rel=1e-5)
    generator = loss.generator(torch.from_numpy(fake))
    assert generator.item() == pytest.approx(cross_entropy(fake, 1), rel=1e-5)


def test_a_discriminator_that_cannot_tell_loses_log_2():
    logits = torch.zeros(4, 1)
    assert CrossEntropy().discriminator(logits, logits).item() == pytest.approx(math.log(2))
    assert CrossEntropy().generator(logits).item() == pytest.approx(math.log(2))


def test_certain_logits_stay_finite():
    logits = torch.tensor([[1e4], [-1e4]])
    assert CrossEntropy().discriminator(logits, -logits).isfinite()


def test_each_adversarial_loss_can_be_configured_by_its_name():
    assert get_args(get_type_hints(LossConfig)["adversarial"]) == tuple(ADVERSARIAL_LOSSES)
    for name, loss in ADVERSARIAL_LOSSES.items():
        assert GeneratorLoss(LossConfig(adversarial=name)).adversarial is loss


def test_least_squares_and_hinge_by_hand():
    real, fake = torch.tensor([[2.0], [0.5]]), torch.tensor([[-3.0], [0.5]])
    squares, hinge = ADVERSARIAL_LOSSES["least-squares"], ADVERSARIAL_LOSSES["hinge"]
    assert squares.discriminator(real, fake).item() == pytest.approx((1.25 / 2 + 9.25 / 2) / 2)
    assert squares.generator(fake).item() == pytest.approx((16 + 0.25) / 2)
    assert hinge.discriminator(real, fake).item() == pytest.approx((0.5 / 2 + 1.5 / 2) / 2)
    assert hinge.generator(fake).item() == pytest.approx(1.25)


@pytest.mark.parametrize("name", list(ADVERSARIAL_LOSSES))
def test_each_loss_draws_logits_apart_and_the_generator_towards_real(name):
    loss = ADVERSARIAL_LOSSES[name]
    real, fake = (torch.full((4, 1), 0.5, requires_grad=True) for _ in range(2))
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    fooled = torch.zeros(4, 1, requires_grad=True)
    loss.generator(fooled).backward()
    assert (fooled.grad < 0).all()


@pytest.mark.parametrize("name", list(ADVERSARIAL_LOSSES))
def test_half_precision_is_summed_in_float32(name):
    logits = torch.full((4096, 1), 3.0, dtype=torch.float16)
    loss = ADVERSARIAL_LOSSES[name]
    assert loss.discriminator(logits, -logits).dtype == torch.float32
    assert loss.generator(logits).isfinite()


def test_wasserstein_by_hand():
    loss = ADVERSARIAL_LOSSES["wasserstein"]
    real, fake = torch.tensor([[2.0], [0.5]]), torch.tensor([[-3.0], [0.5]])
    assert loss.discriminator(real, fake).item() == pytest.approx(-1.25 - 1.25)
    assert loss.generator(fake).item() == pytest.approx(1.25)


def test_the_best_logits_of_kl_are_those_of_the_ratio_of_densities():
    """On two values that target takes with p, synthetic with q, T = 1 + log(p / q) is best."""
    p, q = torch.tensor([0.8, 0.2]), torch.tensor([0.4, 0.6])
    logits = (1 + torch.log(p / q)).requires_grad_()
    values = torch.arange(10)
    real, fake = (logits[(values >= 10 * share[0]).long()] for share in (p, q))
    loss = ADVERSARIAL_LOSSES["kl"].discriminator(real, fake)
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2), rtol=0, atol=1e-6)
    # The bound is then the divergence itself.
    assert -loss.item() == pytest.approx((p * torch.log(p / q)).sum().item(), rel=1e-5)


def test_certain_logits_of_kl_stay_finite():
    loss = ADVERSARIAL_LOSSES["kl"]
    fake = torch.tensor([[10.0], [1e4]], requires_grad=True)
    found = loss.discriminator(fake.detach(), fake)
    found.backward()
    assert found.isfinite() and fake.grad.isfinite().all()
    assert fake.grad[0] == pytest.approx(math.exp(9) / 2, rel=1e-5)
    assert fake.grad[1] == pytest.approx(math.exp(9) / 2, rel=1e-5)

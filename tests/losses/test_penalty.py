"""Penalties on the slope of critics whose slope is known."""

from __future__ import annotations

import pytest
import torch

from distsynth.errors import ConfigError
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.penalty import Penalty, gradient_penalty, r1_penalty
from distsynth.losses.registry import LossConfig
from distsynth.rules import check_rules

SHAPES = [(3, 1, 4, 5), (3, 1, 2, 3, 4)]


def images(shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_a_linear_critic(shape):
    real, fake = images(shape)
    slope = torch.full(shape[1:], 0.3, requires_grad=True)
    norm = 0.3 * slope.numel() ** 0.5

    def score(image):
        return (image * slope).flatten(1).sum(dim=1, keepdim=True)

    shares = torch.rand(len(real))
    assert gradient_penalty(score, real, fake, shares).item() == pytest.approx((norm - 1) ** 2)
    found = r1_penalty(score, real)
    assert found.item() == pytest.approx(norm**2)
    found.backward()
    torch.testing.assert_close(slope.grad, 2 * slope.detach())


def test_slopes_are_taken_between_target_and_synthetic_by_the_shares():
    real, fake = images((3, 1, 4, 5))
    shares = torch.tensor([0.0, 0.25, 1.0])

    def score(image):
        return image.square().flatten(1).sum(dim=1, keepdim=True) / 2

    between = [fake[0], 0.25 * real[1] + 0.75 * fake[1], real[2]]
    expected = sum((image.norm() - 1) ** 2 for image in between) / 3
    torch.testing.assert_close(gradient_penalty(score, real, fake, shares), expected)
    torch.testing.assert_close(r1_penalty(score, real), real.square().sum() / 3)


def test_a_map_of_logits_counts_by_its_mean():
    real, _ = images((3, 1, 4, 5))
    assert r1_penalty(lambda image: 2 * image, real).item() == pytest.approx(20 * (2 / 20) ** 2)


def test_a_flat_critic_has_a_finite_gradient():
    weight = torch.zeros(1, requires_grad=True)
    real, fake = images((3, 1, 4, 5))
    gradient_penalty(lambda image: weight * image, real, fake, torch.rand(3)).backward()
    assert weight.grad is not None and weight.grad.isfinite().all()


def test_a_lazy_penalty_counts_for_the_steps_without_it():
    penalty = Penalty("r1", 0.5, 4)
    assert [penalty.weight_at(step) for step in range(6)] == [2, 0, 0, 0, 2, 0]
    with pytest.raises(ValueError, match="needs shares"):
        Penalty("gradient", 1, 1)(lambda image: image, *images((3, 1, 4, 5)), None)


def test_the_configuration_builds_it():
    assert GeneratorLoss(LossConfig()).penalty is None
    penalty = GeneratorLoss(LossConfig(penalty="r1", penalty_weight=3.0)).penalty
    assert penalty is not None and (penalty.kind, penalty.weight_at(7)) == ("r1", 3.0)
    for config, message in (
        (LossConfig(penalty_weight=0.0), r"loss\.penalty_weight must be > 0, got 0"),
        (LossConfig(penalty_every=0), r"loss\.penalty_every must be >= 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_rules("loss", config.rules())

"""Feature matching by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distsynth.config import with_overrides
from distsynth.errors import ConfigError
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.registry import LossConfig
from distsynth.models import ConvDiscriminatorConfig, PatchGANConfig, build_discriminator
from distsynth.presets import preset

MATCHING = LossConfig(lambda_matching=2.0)


def test_by_hand():
    fake = [torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])]
    real = [torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 1.0]])]
    image = torch.zeros(1, 1, 4, 4)
    total, terms = GeneratorLoss(MATCHING)(image, image, features=(fake, real))
    assert terms["matching"].item() == pytest.approx(0.5 + 2)
    assert total.item() == pytest.approx(5)


def test_only_synthetic_is_drawn():
    fake, real = torch.zeros(1, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    image = torch.zeros(1, 1, 4, 4)
    GeneratorLoss(MATCHING)(image, image, features=([fake], [real]))[0].backward()
    assert (fake.grad < 0).all() and real.grad is None


def test_without_features_there_is_no_term():
    image = torch.zeros(1, 1, 4, 4)
    assert list(GeneratorLoss(MATCHING)(image, image)[1]) == ["recon"]


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("family", [ConvDiscriminatorConfig, PatchGANConfig])
def test_the_features_are_the_activations(family, dims, spectral_norm):
    config = family((4, 6, 8), conditional=True, norm="none", spectral_norm=spectral_norm)
    network = build_discriminator(config, (16,) * dims)
    image, source = torch.randn(2, 2, 1, *(16,) * dims)
    logits, features = network(image, source, True)
    assert torch.equal(logits, network(image, source))
    seen = []
    for part in network.modules():
        if isinstance(part, nn.LeakyReLU):
            part.register_forward_hook(lambda _, __, out: seen.append(out))
    network(image, source)
    assert len(features) == len(seen) == 3
    assert all(torch.equal(one, other) for one, other in zip(features, seen, strict=True))


def test_it_needs_a_discriminator_and_does_not_replace_the_pairs():
    with pytest.raises(ConfigError, match=r"loss\.lambda_matching must be 0 when"):
        with_overrides(preset("dcsrn-l1"), {"loss.lambda_matching": 1.0})
    with pytest.raises(ConfigError, match="the pairs must count"):
        with_overrides(preset("dcgan-2"), {"loss.lambda_recon": 0.0, "loss.lambda_matching": 1.0})

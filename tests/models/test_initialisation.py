"""How weights start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distsynth.models import (
    ConvStackConfig,
    PatchGANConfig,
    UNetConfig,
    build_discriminator,
    build_generator,
)
from distsynth.presets import PRESETS


def test_the_normal_start_is_that_of_pix2pix():
    torch.manual_seed(0)
    unet = build_generator(UNetConfig(init="normal"), (64, 64))
    weights = [part.weight for part in unet.modules() if isinstance(part, nn.Conv2d)]
    weights += [part.weight for part in unet.modules() if isinstance(part, nn.ConvTranspose2d)]
    every = torch.cat([weight.detach().flatten() for weight in weights])
    assert every.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(every.mean().item()) < 1e-4
    norms = [part for part in unet.modules() if isinstance(part, nn.BatchNorm2d)]
    scales = torch.cat([part.weight.detach() for part in norms])
    assert scales.mean().item() == pytest.approx(1, abs=0.01)
    assert scales.std().item() == pytest.approx(0.02, rel=0.2)
    for part in unet.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            assert part.bias is None or not part.bias.any()


@pytest.mark.parametrize("family", [ConvStackConfig, UNetConfig])
def test_the_default_start_is_pytorchs(family):
    torch.manual_seed(0)
    found = build_generator(family(), (32, 32)).state_dict()
    torch.manual_seed(0)
    again = build_generator(family(init="default"), (32, 32)).state_dict()
    assert all(torch.equal(found[name], again[name]) for name in found)
    torch.manual_seed(0)
    normal = build_generator(family(init="normal"), (32, 32)).state_dict()
    assert any(not torch.equal(found[name], normal[name]) for name in found)


def test_sharpening_kernels_are_not_drawn():
    plain = build_generator(ConvStackConfig(sharpen="3x3"), (16, 16)).sharpen
    drawn = build_generator(ConvStackConfig(sharpen="3x3", init="normal"), (16, 16)).sharpen
    image = torch.randn(1, 1, 8, 8)
    assert torch.equal(plain(image), drawn(image))


def test_a_discriminator_starts_likewise():
    torch.manual_seed(0)
    network = build_discriminator(PatchGANConfig(init="normal"), (64, 64))
    weight = torch.cat(
        [
            part.weight.detach().flatten()
            for part in network.modules()
            if isinstance(part, nn.Conv2d)
        ]
    )
    assert weight.std().item() == pytest.approx(0.02, rel=0.01)


def test_the_presets_of_pix2pix_start_as_its_authors_have_them():
    for name, config in PRESETS.items():
        pix2pix = name.startswith(("unet", "pix2pix"))
        assert config.generator.init == ("normal" if pix2pix else "default")
        assert config.optim.beta1 == (0.5 if pix2pix else 0.9)
        if name.startswith("pix2pix"):
            assert config.discriminator.init == "normal"

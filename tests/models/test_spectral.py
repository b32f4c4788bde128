"""Spectral normalisation against the singular values themselves."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from distsynth.models import ConvDiscriminatorConfig, PatchGANConfig, build_discriminator
from distsynth.models.spectral import SpectralNorm, refresh

NETWORKS = {
    "conv": ConvDiscriminatorConfig((4, 6), (3,), norm="none", spectral_norm=True),
    "patchgan": PatchGANConfig((4, 6, 8), norm="none", init="normal", spectral_norm=True),
}


def largest(weight):
    return torch.linalg.svdvals(weight.detach().flatten(1))[0].item()


def test_the_largest_singular_value_becomes_1():
    torch.manual_seed(0)
    weight = torch.randn(6, 3, 3, 3)
    norm = SpectralNorm(weight)
    for _ in range(100):
        norm.iterate(weight)
    assert largest(norm(weight)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_a_discriminator_is_normalised(name, dims):
    torch.manual_seed(0)
    network = build_discriminator(NETWORKS[name], (16,) * dims)
    for _ in range(200):
        refresh(network)
    layers = [part for part in network.modules() if hasattr(part, "parametrizations")]
    assert len(layers) == {"conv": 3, "patchgan": 4}[name]
    for layer in layers:
        assert largest(layer.weight) == pytest.approx(1, abs=2e-3)
    plain = build_discriminator(replace(NETWORKS[name], spectral_norm=False), (16,) * dims)
    count = sum(weight.numel() for weight in network.parameters())
    assert count == sum(weight.numel() for weight in plain.parameters())


def test_forwards_leave_the_vectors_alone_and_a_refresh_follows_the_weights():
    torch.manual_seed(0)
    network = build_discriminator(NETWORKS["conv"], (16, 16))
    before = copy.deepcopy(network.state_dict())
    image = torch.randn(2, 1, 16, 16)
    network(image, image).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    refresh(network)
    moved = {name for name, value in network.state_dict().items() if not value.equal(before[name])}
    assert moved and all(name.endswith(("left", "right")) for name in moved)


def test_the_drawn_start_is_what_is_normalised():
    torch.manual_seed(0)
    network = build_discriminator(NETWORKS["patchgan"], (32, 32))
    original = network.network.layers[2].parametrizations.weight.original
    assert original.std().item() == pytest.approx(0.02, rel=0.1)


def test_half_precision_is_normalised_in_float32():
    weight = torch.randn(6, 3, 3, 3)
    norm = SpectralNorm(weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm(weight), norm(weight)) and norm(weight).dtype == torch.float32
    expected = norm(weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm(weight), expected)

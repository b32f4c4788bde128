from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from distsynth.config import RunConfig, with_overrides
from distsynth.errors import ConfigError
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.reconstruction import reconstruction_loss
from distsynth.losses.registry import LossConfig

BOTH = LossConfig(lambda_recon=1.0, lambda_structure=1.0, structure_window=3)


def images(*sides):
    draw = torch.Generator().manual_seed(2)
    synthetic, target = torch.randn(2, 3, 1, *sides, generator=draw)
    inside = torch.rand(3, 1, *sides, generator=draw) < 0.4
    return synthetic, target, inside


@pytest.mark.parametrize(
    ("norm", "expected"),
    [("l1", (3 + 0.25 * 8) / 4), ("l2", (9 + 0.25 * 64) / 4), ("charbonnier", (5 + 0.25 * 17) / 4)],
)
def test_a_voxel_outside_counts_the_given_weight(norm, expected):
    """Differences of 3 inside and 8 outside, of four voxels; Charbonnier has epsilon 4 and 15."""
    epsilon = {3.0: 4.0, 8.0: 15.0}
    inside = torch.tensor([[[1.0, 0.25, 1.0, 0.25]]])
    target = torch.zeros(1, 1, 4)
    if norm != "charbonnier":
        synthetic = torch.tensor([[[3.0, 8.0, 0.0, 0.0]]])
        found = reconstruction_loss(synthetic, target, norm, weights=inside)
    else:
        one, other = (
            reconstruction_loss(torch.tensor([[[d]]]), target[..., :1], norm, epsilon[d], weight)
            for d, weight in ((3.0, torch.ones(1)), (8.0, torch.tensor([0.25])))
        )
        found = (one + other) / 4
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("sides", [(7, 6), (5, 6, 7)], ids=str)
def test_at_weight_0_what_is_outside_changes_nothing_and_has_no_gradient(sides):
    synthetic, target, inside = images(*sides)
    config = replace(BOTH, mask_weight=0.0, lambda_structure=0.0)
    loss = GeneratorLoss(config)
    assert loss.needs_mask
    given = synthetic.clone().requires_grad_()
    total, _ = loss(given, target, inside=inside)
    assert float(total.detach()) == pytest.approx(
        float((synthetic - target).abs()[inside].sum()) / inside.numel(), rel=1e-5
    )
    total.backward()
    assert given.grad is not None
    assert bool((given.grad[~inside] == 0).all()) and bool((given.grad[inside] != 0).all())


@pytest.mark.parametrize("sides", [(7, 6), (5, 6, 7)], ids=str)
def test_a_window_of_ssim_counts_as_its_centre(sides):
    synthetic, target, inside = images(*sides)
    weighted = GeneratorLoss(replace(BOTH, mask_weight=0.25))
    _, terms = weighted(synthetic, target, inside=inside)
    # Each window by itself is a patch of its size.
    dims, plain = len(sides), GeneratorLoss(BOTH)

    def windows(image):
        for axis in range(2, 2 + dims):
            image = image.unfold(axis, 3, 1)
        return image.reshape(-1, 1, *[3] * dims)

    def of_one(a, b):
        return plain(a[None], b[None])[1]["structure"]

    values = torch.stack(
        [of_one(*pair) for pair in zip(*map(windows, (synthetic, target)), strict=True)]
    )
    centres = inside[(..., *[slice(1, -1)] * dims)].flatten()
    expected = (values * torch.where(centres, 1.0, 0.25)).mean()
    torch.testing.assert_close(terms["structure"], expected, rtol=1e-4, atol=1e-6)


def test_without_a_weight_nothing_changes():
    synthetic, target, inside = images(7, 6)
    loss = GeneratorLoss(BOTH)
    assert not loss.needs_mask
    whole, masked = loss(synthetic, target)[0], loss(synthetic, target, inside=inside)[0]
    assert torch.equal(whole, masked)
    assert float(GeneratorLoss(LossConfig())(synthetic, target)[0]) == float(
        F.l1_loss(synthetic, target)
    )


def test_other_terms_do_not_ask_for_a_mask():
    config = LossConfig(lambda_recon=0.0, lambda_gradient=1.0, mask_weight=0.0)
    loss = GeneratorLoss(config)
    assert not loss.needs_mask
    synthetic, target, _ = images(7, 6)
    assert float(loss(synthetic, target)[0]) > 0
    assert "mask" not in config.description


def test_it_is_refused_named_and_described():
    with pytest.raises(ConfigError, match=r"loss\.mask_weight must be >= 0, got -1"):
        with_overrides(RunConfig(), {"loss.mask_weight": -1.0})
    synthetic, target, _ = images(7, 6)
    with pytest.raises(ValueError, match=r"loss\.mask_weight needs the mask of each patch"):
        GeneratorLoss(replace(BOTH, mask_weight=0.5))(synthetic, target)
    assert replace(BOTH, mask_weight=0.5).description.endswith(
        "; voxels outside of the mask count 0.5"
    )

from __future__ import annotations

import math

import pytest
import torch

from distsynth.config import RunConfig, with_overrides
from distsynth.errors import ConfigError
from distsynth.losses.frequency import FocalFrequency
from distsynth.losses.reconstruction import reconstruction_loss
from distsynth.losses.registry import LossConfig
from distsynth.losses.structure import Structure
from distsynth.losses.term import Outputs
from distsynth.metrics.image import ssim_map
from sharding.volumes.intensities import CENTRE, WIDTH


def images(*sides, count=2):
    draw = torch.Generator().manual_seed(1)
    target = torch.randn(count, 1, *sides, generator=draw)
    return target + 0.3 * torch.randn(count, 1, *sides, generator=draw), target


@pytest.mark.parametrize("sides", [(20, 18), (15, 14, 13)], ids=str)
def test_structure_is_one_less_ssim_within_the_patch(sides):
    synthetic, target = images(*sides, count=1)
    term = Structure(LossConfig(structure_window=11))
    found = term(Outputs(synthetic, target))
    a, b = (
        (part[0, 0] * WIDTH + CENTRE).double().numpy().reshape(*sides, *[1] * (3 - len(sides)))
        for part in (synthetic, target)
    )
    values = ssim_map(a, b, 1.0, dims=len(sides))
    inner = values[tuple(slice(5, side - 5) for side in sides)]
    assert float(found) == pytest.approx(1 - inner.mean(), abs=1e-5)
    assert float(term(Outputs(target, target))) == pytest.approx(0, abs=1e-6)


def test_a_window_must_fit_and_be_odd():
    for window in (4, 1, 33):
        with pytest.raises(ConfigError, match=r"loss\.structure_window must be odd, 3 to 31"):
            with_overrides(RunConfig(), {"loss.structure_window": window})
    with pytest.raises(ConfigError, match=r"structure_window must be at most the patch's shortest"):
        with_overrides(
            RunConfig(),
            {"data.patch_size": (6, 32), "loss.lambda_structure": 1.0, "stitch.stride": 4},
        )


@pytest.mark.parametrize("sides", [(6, 5), (4, 5, 6)], ids=str)
def test_frequency_without_focus_is_the_squared_difference(sides):
    synthetic, target = images(*sides)
    term = FocalFrequency(LossConfig(frequency_focus=0.0))
    expected = (synthetic - target).square().mean()
    torch.testing.assert_close(term(Outputs(synthetic, target)), expected)


def test_frequency_weighs_by_the_difference():
    """A cosine of amplitude 2 and one of 1: weights 1 and 1/2, energies 4 to 1."""
    wave = torch.arange(16) * 2 * math.pi / 16
    difference = 2 * torch.cos(wave) + torch.cos(3 * wave)
    synthetic = difference.expand(1, 1, 8, 16)
    term = FocalFrequency(LossConfig())
    found = float(term(Outputs(synthetic, torch.zeros_like(synthetic))))
    assert found == pytest.approx((4 * 1 + 1 * 0.5) / 2, rel=1e-5)
    given = synthetic.clone().requires_grad_()
    term(Outputs(given, torch.zeros_like(given))).backward()
    assert bool(torch.isfinite(given.grad).all())
    same = synthetic.clone().requires_grad_()
    term(Outputs(same, synthetic)).backward()
    assert float(same.grad.abs().max()) == 0


def test_charbonnier_by_hand():
    synthetic, target = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 0.0]]])
    found = reconstruction_loss(synthetic, target, "charbonnier", 4.0)
    assert float(found) == pytest.approx((5 + 4) / 2)

"""The gradient difference of stitched windows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distsynth.config import with_overrides
from distsynth.errors import ConfigError
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.gradient import gradient_difference_loss
from distsynth.losses.overlap import corner_windows, window_sides
from distsynth.losses.registry import LossConfig
from distsynth.models import ConvStackConfig, build_generator
from distsynth.presets import preset

OVERLAP = LossConfig(lambda_recon=0.0, lambda_overlap=1.0)


class Offset(nn.Module):
    """Gives each window of a batch a level of its own, so that seams stand between them."""

    multiple = 1

    def forward(self, source):
        levels = torch.arange(len(source), dtype=torch.float32)
        return source + levels.view(-1, *[1] * (source.ndim - 1))


def value(generator, source, target):
    _, terms = GeneratorLoss(OVERLAP)(target, target, source=source, generator=generator)
    return terms["overlap"]


def test_a_network_that_sees_voxels_alone_gives_the_loss_of_the_patch():
    source, target = torch.randn(2, 3, 1, 12, 16)
    found = value(build_generator(ConvStackConfig((3,), (1,), "none"), (12, 16)), source, target)
    assert found > 0
    same = nn.Identity()
    same.multiple = 1
    torch.testing.assert_close(
        value(same, source, target), gradient_difference_loss(source, target)
    )


def test_seams_between_windows_by_hand():
    image = torch.zeros(1, 1, 4, 4)
    # Windows of 3: rows and columns 0 to 2 or 1 to 3, with levels 0, 1, 2 and 3.
    line = [[0, 0.5, 0.5, 1], [1, 1.5, 1.5, 2], [1, 1.5, 1.5, 2], [2, 2.5, 2.5, 3]]
    stitched = torch.tensor([[line]])
    found = value(Offset(), image, image)
    torch.testing.assert_close(found, gradient_difference_loss(stitched, image))
    assert found.item() == pytest.approx((2 * 0.25 / 3) + (2 * 1 / 3))


@pytest.mark.parametrize(
    ("patch", "multiple", "sides"),
    [
        ((64, 64), 1, (48, 48)),
        ((64, 64), 16, (48, 48)),
        ((32, 48, 32), 2, (24, 36, 24)),
        ((64, 64), 32, None),
        ((64, 64), 64, None),
        ((16, 16), 8, None),
        ((40, 40), 8, (24, 24)),
    ],
)
def test_sides_of_windows(patch, multiple, sides):
    assert window_sides(patch, multiple) == sides
    if sides:
        windows = corner_windows(patch, sides)
        assert len(windows) == 2 ** len(patch)
        covered = torch.zeros(patch)
        for window in windows:
            covered[window] += 1
        assert covered.min() == 1 and covered.max() == len(windows)


def test_the_generator_learns_from_it():
    generator = build_generator(ConvStackConfig((3,), (3,), "none"), (12, 12))
    source, target = torch.randn(2, 2, 1, 12, 12)
    total, _ = GeneratorLoss(OVERLAP)(generator(source), target, source=source, generator=generator)
    total.backward()
    assert all(weight.grad is not None for weight in generator.parameters())


def test_a_generator_of_too_many_levels_is_refused():
    patch = {"data.patch_size": (64, 64), "loss.lambda_overlap": 1.0}
    with pytest.raises(ConfigError, match=r"loss\.lambda_overlap must be 0 .* divisible by 64"):
        with_overrides(preset("unet-7"), patch)
    four = patch | {"generator.channels": (16, 32, 64, 128)}
    assert with_overrides(preset("unet-7"), four).loss.lambda_overlap == 1

"""The U-Net generator of pix2pix (section 6.3, figure 13 g)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from distsynth.errors import ConfigError
from distsynth.models.generator import GeneratorConfig
from distsynth.models.layers import Norm, WidthsLabel, conv, normalisation, transposed_conv
from distsynth.rules import Rule, positive_widths


@dataclass(frozen=True)
class UNetConfig(WidthsLabel, GeneratorConfig):
    """The U-Net of pix2pix, with kernels of 4 throughout."""

    family: Literal["unet"] = field(default="unet", kw_only=True)
    channels: tuple[int, ...] = (16, 32, 64, 128, 128, 128)
    """Widths of the levels, each of half the sides, cut to as many as the patch allows."""
    norm: Norm = "batch"

    def rules(self) -> Iterable[Rule]:
        """Positive widths, at least two."""
        yield from positive_widths("channels", self.channels)
        enough = len(self.channels) >= 2
        yield Rule("channels", enough, "at least two levels for a unet", self.channels)

    def network(self, patch_size: Sequence[int], in_channels: int) -> nn.Module:
        """Build as many levels as the patch allows."""
        levels = unet_levels(patch_size, len(self.channels))
        return UNet(self, len(patch_size), in_channels, levels)

    def multiple(self, patch_size: Sequence[int]) -> int:
        """Two to the power of the levels."""
        return 2 ** unet_levels(patch_size, len(self.channels))

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse sides that cannot be halved twice."""
        unet_levels(patch_size, len(self.channels))


class UNet(nn.Module):
    """Stride-2 convolutions down, transposed convolutions up, skips concatenated.

    As pix2pix: kernel 4, LeakyReLU 0.2 before each down convolution but the outermost, ReLU before
    each up convolution, no norm on the outermost and innermost encoder levels. The innermost map
    may be a single voxel, which no norm could standardise: none sees it. A norm takes the bias's
    place in every convolution but the last; norm "none" has biases everywhere. Without pix2pix's
    dropout, of which the paper says nothing (ours).
    """

    def __init__(self, config: UNetConfig, dims: int, in_channels: int, levels: int) -> None:
        super().__init__()
        widths = config.channels[:levels]
        bias = config.norm == "none"
        self.down = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(pairwise((in_channels, *widths))):
            layers = [conv(dims, inputs, outputs, 4, stride=2, bias=bias)]
            if level > 0:
                layers.insert(0, nn.LeakyReLU(0.2))
            if 0 < level < levels - 1:
                layers.append(normalisation(config.norm, dims, outputs))
            self.down.append(nn.Sequential(*layers))

        self.up = nn.ModuleList()
        inputs = widths[-1]
        for outputs in reversed(widths[:-1]):
            layers = [
                nn.ReLU(),
                transposed_conv(dims, inputs, outputs, bias=bias),
                normalisation(config.norm, dims, outputs),
            ]
            self.up.append(nn.Sequential(*layers))
            inputs = 2 * outputs  # the skip is concatenated
        self.last = nn.Sequential(nn.ReLU(), transposed_conv(dims, inputs, 1))

    def forward(self, source: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> (batch, 1, *spatial), sides divisible by `multiple`."""
        features, skips = source, []
        for down in self.down:
            features = down(features)
            skips.append(features)
        skips.pop()
        for up in self.up:
            features = torch.cat((skips.pop(), up(features)), dim=1)
        return self.last(features)


def unet_levels(patch_size: Sequence[int], most: int) -> int:
    """The depth that a patch allows: 6 levels for sides of 64, 5 for 32.

    Args:
        patch_size: Sides in voxels.
        most: Levels that the configuration has widths for.

    Returns:
        The largest number of levels, up to `most`, that halve every side without remainder.

    Raises:
        ConfigError: If not even two levels fit.
    """
    for levels in range(most, 1, -1):
        if all(side % 2**levels == 0 for side in patch_size):
            return levels
    raise ConfigError(
        "data.patch_size must have sides divisible by 4 for a unet of two levels, got "
        f"{tuple(patch_size)}; choose sides divisible by {2**most} for all {most} levels, "
        "or another generator.family"
    )

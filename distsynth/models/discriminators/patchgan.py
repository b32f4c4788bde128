"""pix2pix's PatchGAN: a map of logits (section 6.3, figure 13 h)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from torch import nn

from distsynth.models.discriminator import (
    DiscriminatorConfig,
    DiscriminatorNetwork,
    check_sides,
)
from distsynth.models.layers import Norm, WidthsLabel, conv, normalisation
from distsynth.rules import Rule, positive_widths


@dataclass(frozen=True)
class PatchGANConfig(WidthsLabel, DiscriminatorConfig):
    """The PatchGAN of pix2pix, with kernels of 4 throughout."""

    family: Literal["patchgan"] = field(default="patchgan", kw_only=True)
    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Widths of the layers, each of half the sides but the last."""
    norm: Norm = "batch"

    def rules(self) -> Iterable[Rule]:
        """Positive widths."""
        yield from positive_widths("channels", self.channels)

    def network(self, patch_size: Sequence[int], in_channels: int) -> DiscriminatorNetwork:
        """Build the layers."""
        self.check_patch(patch_size)
        return PatchGAN(self, len(patch_size), in_channels)

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse patches that leave no map of logits."""
        # Halved by each width but the last; the two layers of stride 1 take a voxel each.
        layers = len(self.channels)
        check_sides(patch_size, 3 * 2 ** (layers - 1), f"a patchgan of {layers} widths")


class PatchGAN(DiscriminatorNetwork):
    """pix2pix's PatchGAN (h): one logit for each receptive patch, (batch, 1, *map).

    Kernel 4 throughout; every width has stride 2 but the last, then a convolution to one channel.
    Norm on all but the first and last layers, where it takes the bias's place.
    """

    def __init__(self, config: PatchGANConfig, dims: int, in_channels: int) -> None:
        super().__init__()
        widths = config.channels
        layers = []
        for index, (inputs, outputs) in enumerate(pairwise((in_channels, *widths))):
            stride = 2 if index < len(widths) - 1 else 1
            bias = index == 0 or config.norm == "none"
            layers.append(conv(dims, inputs, outputs, 4, stride, bias=bias))
            if index > 0:
                layers.append(normalisation(config.norm, dims, outputs))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, conv(dims, widths[-1], 1, 4))

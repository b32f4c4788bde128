"""A discriminator of plain convolutions: one logit for a patch (section 6.3, figure 13)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from distsynth.models.discriminator import (
    DiscriminatorConfig,
    DiscriminatorNetwork,
    check_sides,
)
from distsynth.models.layers import Norm, WidthsLabel, conv, kernel_sizes, max_pool, normalisation
from distsynth.rules import Rule, odd_kernels, positive_widths


@dataclass(frozen=True)
class ConvDiscriminatorConfig(WidthsLabel, DiscriminatorConfig):
    """Convolutions that halve the sides, then one logit for the whole patch."""

    family: Literal["conv"] = field(default="conv", kw_only=True)
    channels: tuple[int, ...] = (8, 20, 24, 4)
    """Widths of the layers, each of half the sides."""
    kernels: tuple[int, ...] = (3,)
    """Odd kernel sizes: one a layer, or one that serves every layer."""
    downsample: Literal["stride", "maxpool"] = "stride"
    """How each layer halves its maps."""
    norm: Norm = "batch"

    def rules(self) -> Iterable[Rule]:
        """Positive widths and odd kernels, as many as there are layers."""
        yield from positive_widths("channels", self.channels)
        yield from odd_kernels("kernels", self.kernels, len(self.channels))

    def network(self, patch_size: Sequence[int], in_channels: int) -> DiscriminatorNetwork:
        """Build the layers and the logit."""
        self.check_patch(patch_size)
        return ConvDiscriminator(self, len(patch_size), in_channels)

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse patches that are halved to less than a voxel."""
        # Instance norm needs more than one voxel, and a stride halves before the norm.
        single = self.norm == "instance" and self.downsample == "stride"
        layers = len(self.channels)
        check_sides(patch_size, 2**layers + single, f"a conv discriminator of {layers} layers")


class ConvDiscriminator(DiscriminatorNetwork):
    """Convolutions that halve the sides, a global average, one logit: (b), (d) and (f).

    Each layer halves by stride or by max-pooling; norm on all but the first, LeakyReLU 0.2. The
    paper's figure of these networks is not in its text: the layout is ours.
    """

    def __init__(self, config: ConvDiscriminatorConfig, dims: int, in_channels: int) -> None:
        super().__init__()
        pooled = config.downsample == "maxpool"
        widths = pairwise((in_channels, *config.channels))
        kernels = kernel_sizes(config.kernels, len(config.channels))
        layers = []
        for index, ((inputs, outputs), kernel) in enumerate(zip(widths, kernels, strict=True)):
            layers.append(conv(dims, inputs, outputs, kernel, stride=1 if pooled else 2))
            if index > 0:
                layers.append(normalisation(config.norm, dims, outputs))
            layers.append(nn.LeakyReLU(0.2))
            if pooled:
                layers.append(max_pool(dims))
        self.layers = nn.Sequential(*layers)
        self.logit = nn.Linear(config.channels[-1], 1)

    def logits(self, features: Tensor) -> Tensor:
        """(batch, channels, *map) -> logits (batch, 1)."""
        return self.logit(features.flatten(2).mean(dim=2))

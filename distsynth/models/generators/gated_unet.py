"""A U-Net of gated blocks without activations, after NAFNet (Chen et al., ECCV 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from distsynth.models.generators.shuffle_unet import ShuffleUNetConfig
from distsynth.models.layers import Norm, conv, depthwise_conv, normalisation, zero_conv


@dataclass(frozen=True, kw_only=True)
class GatedUNetConfig(ShuffleUNetConfig):
    """NAFNet: depthwise convolutions, products of channels in the place of activations."""

    family: Literal["gated-unet"] = field(default="gated-unet")
    norm: Norm = "layer"
    attention: bool = False
    """Weigh channels by their mean over the image, as NAFNet does. The output of a voxel then
    depends on all that the network is shown."""

    @property
    def block_reach(self) -> int | None:
        """One depthwise convolution of kernel 3."""
        return None if self.attention else 1

    def block(self, dims: int, features: int) -> nn.Module:
        """Build a block."""
        return nn.Sequential(
            GatedHalf(self, dims, features, spatial=True),
            GatedHalf(self, dims, features, spatial=False),
        )


class GatedHalf(nn.Module):
    """Norm, twice the channels, their product by pairs, and a layer that starts at zero, added.

    The first half of a block also looks at the neighbours of a voxel, the second one does not.
    """

    def __init__(self, config: GatedUNetConfig, dims: int, features: int, spatial: bool) -> None:
        super().__init__()
        layers = [normalisation(config.norm, dims, features), conv(dims, features, 2 * features, 1)]
        if spatial:
            layers.append(depthwise_conv(dims, 2 * features, 3))
        self.widen = nn.Sequential(*layers)
        attends = spatial and config.attention
        self.attention = conv(dims, features, features, 1) if attends else None
        self.narrow = zero_conv(dims, features, features, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Keep the shape."""
        one, other = self.widen(features).chunk(2, dim=1)
        gated = one * other
        if self.attention is not None:
            mean = torch.mean(gated, dim=tuple(range(2, gated.dim())), keepdim=True)
            gated = gated * self.attention(mean)
        return features + self.narrow(gated)

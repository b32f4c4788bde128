"""A U-Net of residual blocks, after the residual encoders of nnU-Net (Isensee et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from distsynth.models.generators.shuffle_unet import ShuffleUNetConfig
from distsynth.models.layers import conv, normalisation, zero_conv


@dataclass(frozen=True, kw_only=True)
class ResidualUNetConfig(ShuffleUNetConfig):
    """More blocks on the way down than on the way up; features are added, not concatenated."""

    family: Literal["residual-unet"] = field(default="residual-unet")

    @property
    def block_reach(self) -> int:
        """Two convolutions of kernel 3."""
        return 2

    def block(self, dims: int, features: int) -> nn.Module:
        """Build a block."""
        return ResidualUNetBlock(self, dims, features)


class ResidualUNetBlock(nn.Module):
    """Convolution, norm, ReLU, a convolution that starts at zero, norm, added to the input."""

    def __init__(self, config: ResidualUNetConfig, dims: int, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv(dims, features, features, 3),
            normalisation(config.norm, dims, features),
            nn.ReLU(),
            zero_conv(dims, features, features, 3),
            normalisation(config.norm, dims, features),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Keep the shape."""
        return features + self.layers(features)

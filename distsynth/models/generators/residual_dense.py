"""The residual dense network RDN (Zhang et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from distsynth.models.generator import GeneratorConfig
from distsynth.models.layers import Norm, conv, normalisation, reach
from distsynth.rules import Rule, counts, odd_kernels


@dataclass(frozen=True)
class ResidualDenseConfig(GeneratorConfig):
    """RDN: residual blocks of densely connected convolutions, all of which the output reads."""

    family: Literal["residual-dense"] = field(default="residual-dense", kw_only=True)
    features: int = 24
    """Feature maps between the blocks."""
    blocks: int = 4
    """Residual dense blocks."""
    layers: int = 4
    """Densely connected convolutions of a block."""
    growth: int = 16
    """Feature maps that each of them adds."""
    kernel: int = 3
    """Odd kernel size of every layer but the fusions, whose kernel is 1."""
    norm: Norm = "none"

    @property
    def label(self) -> str:
        """The family, blocks, layers and feature maps."""
        return f"{self.family} {self.blocks}x{self.layers}x{self.growth} of {self.features}"

    def rules(self) -> Iterable[Rule]:
        """Positive counts and an odd kernel."""
        yield from counts(
            features=self.features, blocks=self.blocks, layers=self.layers, growth=self.growth
        )
        yield from odd_kernels("kernel", (self.kernel,), 1)

    def network(self, patch_size: Sequence[int], in_channels: int) -> nn.Module:
        """Build shallow layers, blocks and fusion."""
        return ResidualDenseNetwork(self, len(patch_size), in_channels)


class ResidualDenseNetwork(nn.Module):
    """Two shallow convolutions, blocks, the fusion of all blocks' outputs, and one output.

    The source lies on the grid of the target already, so that RDN's layers that enlarge the image
    are left out (ours). A norm follows each densely connected convolution; RDN itself has none.
    """

    def __init__(self, config: ResidualDenseConfig, dims: int, in_channels: int) -> None:
        super().__init__()
        features, kernel = config.features, config.kernel
        self.first = conv(dims, in_channels, features, kernel)
        self.second = conv(dims, features, features, kernel)
        self.blocks = nn.ModuleList(DenseBlock(config, dims) for _ in range(config.blocks))
        self.fusion = nn.Sequential(
            conv(dims, config.blocks * features, features, 1),
            conv(dims, features, features, kernel),
        )
        self.last = conv(dims, features, 1, kernel)
        self.reach = reach(config.norm, [kernel] * (config.blocks * config.layers + 4))

    def forward(self, source: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> (batch, 1, *spatial), any sides."""
        shallow = self.first(source)
        features, outputs = self.second(shallow), []
        for block in self.blocks:
            features = block(features)
            outputs.append(features)
        return self.last(shallow + self.fusion(torch.cat(outputs, dim=1)))


class DenseBlock(nn.Module):
    """Convolutions that each read all before them, fused by a kernel of 1, added to the input."""

    def __init__(self, config: ResidualDenseConfig, dims: int) -> None:
        super().__init__()
        width = config.features
        self.layers = nn.ModuleList()
        for _ in range(config.layers):
            layer = nn.Sequential(
                conv(dims, width, config.growth, config.kernel),
                normalisation(config.norm, dims, config.growth),
                nn.ReLU(),
            )
            self.layers.append(layer)
            width += config.growth
        self.fusion = conv(dims, width, config.features, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Keep the shape."""
        found = features
        for layer in self.layers:
            found = torch.cat((found, layer(found)), dim=1)
        return features + self.fusion(found)

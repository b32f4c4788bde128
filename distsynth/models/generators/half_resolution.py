"""A residual network at half resolution: cells of two voxels a side are its feature maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from distsynth.errors import ConfigError
from distsynth.models.generator import GeneratorConfig
from distsynth.models.layers import (
    Norm,
    ResidualBlock,
    conv,
    depth_to_space,
    reach,
    space_to_depth,
    zero_conv,
)
from distsynth.rules import Rule, counts, odd_kernels

CELL = 2
"""Voxels along each side of a cell, whose voxels become channels of one feature."""


@dataclass(frozen=True)
class HalfResolutionConfig(GeneratorConfig):
    """Residual blocks between a layer that gathers cells of voxels and one that scatters them."""

    family: Literal["half-resolution"] = field(default="half-resolution", kw_only=True)
    features: int = 32
    """Feature maps of every layer."""
    blocks: int = 5
    """Residual blocks, each of two convolutions."""
    kernel: int = 3
    """Odd kernel size of every layer, in cells."""
    norm: Norm = "none"
    residual: bool = field(default=True, kw_only=True)
    """Add the source to the output; the untrained network then returns the source itself."""

    @property
    def label(self) -> str:
        """The family, blocks and feature maps."""
        return f"{self.family} {self.blocks}x{self.features}"

    def rules(self) -> Iterable[Rule]:
        """Positive counts and an odd kernel."""
        yield from counts(features=self.features, blocks=self.blocks)
        yield from odd_kernels("kernel", (self.kernel,), 1)

    def network(self, patch_size: Sequence[int], in_channels: int) -> nn.Module:
        """Build the network."""
        self.check_patch(patch_size)
        return HalfResolutionNetwork(self, len(patch_size), in_channels)

    def multiple(self, patch_size: Sequence[int]) -> int:  # noqa: ARG002
        """The sides of a cell."""
        return CELL

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse odd sides, and a map that instance norm could not standardise."""
        least = 2 * CELL if self.norm == "instance" else CELL
        if any(side % CELL or side < least for side in patch_size):
            raise ConfigError(
                f"data.patch_size must have even sides of at least {least} for a half-resolution "
                f"generator, got {tuple(patch_size)}; change the sides"
            )


class HalfResolutionNetwork(nn.Module):
    """Cells to channels, a head, residual blocks, a tail, channels to cells.

    All convolutions see a quarter of the voxels in 2D and an eighth in 3D, with a field of view
    twice as wide. The second convolution of each block and the tail start at zero, so that the
    untrained network returns zero.
    """

    def __init__(self, config: HalfResolutionConfig, dims: int, in_channels: int) -> None:
        super().__init__()
        features, kernel, voxels = config.features, config.kernel, CELL**dims
        self.head = conv(dims, in_channels * voxels, features, kernel)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(dims, features, kernel, config.norm, zero_start=True)
                for _ in range(config.blocks)
            )
        )
        self.tail = zero_conv(dims, features, voxels, kernel)
        cells = reach(config.norm, [kernel] * (2 * config.blocks + 2))
        self.reach = None if cells is None else CELL * cells

    def forward(self, source: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> (batch, 1, *spatial), even sides."""
        features = self.blocks(self.head(space_to_depth(source, CELL)))
        return depth_to_space(self.tail(features), CELL)

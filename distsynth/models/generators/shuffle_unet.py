"""The U shape of the newer U-Nets: levels of residual blocks, sides halved and doubled by shuffles.

Cells of two voxels a side become channels on the way down, and channels cells on the way up. No
voxel is dropped, and unlike transposed convolutions this leaves no checkerboard.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from distsynth.errors import ConfigError
from distsynth.models.generator import GeneratorConfig
from distsynth.models.layers import (
    Norm,
    WidthsLabel,
    conv,
    depth_to_space,
    space_to_depth,
    zero_conv,
)
from distsynth.rules import Rule, counts, positive_widths

CELL = 2
"""Voxels along each side of a cell."""


@dataclass(frozen=True)
class ShuffleUNetConfig(WidthsLabel, GeneratorConfig):
    """What U-Nets of residual blocks share; a family adds the block."""

    channels: tuple[int, ...] = (16, 32, 64)
    """Widths of the levels, each of half the sides of the one before."""
    encoder_blocks: int = 2
    """Residual blocks of a level on the way down, and at the bottom."""
    decoder_blocks: int = 1
    """Residual blocks of a level on the way up."""
    norm: Norm = "none"
    residual: bool = field(default=True, kw_only=True)
    """Add the source to the output; the untrained network then returns the source itself."""

    @abstractmethod
    def block(self, dims: int, features: int) -> nn.Module:
        """A residual block that keeps its shape."""

    @property
    @abstractmethod
    def block_reach(self) -> int | None:
        """Voxels on each side that a block looks; None if it looks everywhere."""

    def rules(self) -> Iterable[Rule]:
        """Two levels or more, and blocks."""
        yield from positive_widths("channels", self.channels)
        enough = len(self.channels) >= 2
        yield Rule("channels", enough, "at least two levels for a U-Net", self.channels)
        yield from counts(encoder_blocks=self.encoder_blocks, decoder_blocks=self.decoder_blocks)

    def network(self, patch_size: Sequence[int], in_channels: int) -> nn.Module:
        """Build the levels."""
        self.check_patch(patch_size)
        return ShuffleUNet(self, len(patch_size), in_channels)

    def multiple(self, patch_size: Sequence[int]) -> int:  # noqa: ARG002
        """Two to the power of the levels but one."""
        return CELL ** (len(self.channels) - 1)

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse sides that cannot be halved at each level."""
        multiple = self.multiple(patch_size)
        least = 2 if self.norm == "instance" else 1
        if any(side % multiple or side // multiple < least for side in patch_size):
            raise ConfigError(
                f"data.patch_size must have sides divisible by {multiple}, {least * multiple} or "
                f"more, for {len(self.channels)} levels, got {tuple(patch_size)}; change the sides "
                "or shorten generator.channels"
            )


class ShuffleUNet(nn.Module):
    """A head, levels down and up whose features are added, and a tail that starts at zero.

    Attributes:
        reach: An upper bound, in voxels; None with instance norm, or if blocks look everywhere.
    """

    def __init__(self, config: ShuffleUNetConfig, dims: int, in_channels: int) -> None:
        super().__init__()
        widths = config.channels

        def blocks(count: int, features: int) -> nn.Module:
            return nn.Sequential(*(config.block(dims, features) for _ in range(count)))

        self.head = conv(dims, in_channels, widths[0], 3)
        self.encoders = nn.ModuleList(blocks(config.encoder_blocks, width) for width in widths)
        self.decoders = nn.ModuleList(blocks(config.decoder_blocks, width) for width in widths[:-1])
        self.downs = nn.ModuleList(
            conv(dims, above * CELL**dims, below, 1) for above, below in pairwise(widths)
        )
        self.ups = nn.ModuleList(
            conv(dims, below, above * CELL**dims, 1) for above, below in pairwise(widths)
        )
        self.tail = zero_conv(dims, widths[0], 1, 3)
        self.reach = _reach(config)

    def forward(self, source: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> (batch, 1, *spatial), sides divisible by `multiple`."""
        features, skips = self.head(source), []
        for encoder, down in zip(self.encoders, self.downs, strict=False):
            features = encoder(features)
            skips.append(features)
            features = down(space_to_depth(features, CELL))
        features = self.encoders[-1](features)
        for decoder, up in reversed(list(zip(self.decoders, self.ups, strict=True))):
            features = decoder(skips.pop() + depth_to_space(up(features), CELL))
        return self.tail(features)


def _reach(config: Any) -> int | None:
    """How far a U-Net looks, rounded up to what its sides are divisible by.

    A voxel of a level needs the cells around it, and of each cell all voxels: one more than twice
    what the level below needs.
    """
    if config.block_reach is None or config.norm == "instance":
        return None
    found = config.encoder_blocks * config.block_reach
    for _ in config.channels[1:]:
        both = config.encoder_blocks + config.decoder_blocks
        found = both * config.block_reach + 1 + CELL * found
    multiple = config.multiple(())
    return -(-(found + 2) // multiple) * multiple

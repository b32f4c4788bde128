"""A residual network without normalisation, after EDSR (Lim et al., CVPRW 2017)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from distsynth.models.generator import GeneratorConfig
from distsynth.models.layers import Norm, ResidualBlock, conv, reach
from distsynth.rules import Rule, counts, odd_kernels, positive


@dataclass(frozen=True)
class ResidualConfig(GeneratorConfig):
    """EDSR: residual blocks of two convolutions between a head and a tail."""

    family: Literal["residual"] = field(default="residual", kw_only=True)
    features: int = 32
    """Feature maps of every layer."""
    blocks: int = 8
    """Residual blocks, each of two convolutions."""
    kernel: int = 3
    """Odd kernel size of every layer."""
    block_scale: float = 1.0
    """Factor on what a block adds; EDSR takes 0.1 for 256 feature maps, so that training stays
    stable."""
    norm: Norm = "none"

    @property
    def label(self) -> str:
        """The family, blocks and feature maps."""
        return f"{self.family} {self.blocks}x{self.features}"

    def rules(self) -> Iterable[Rule]:
        """Positive counts, an odd kernel and a positive scale."""
        yield from counts(features=self.features, blocks=self.blocks)
        yield from odd_kernels("kernel", (self.kernel,), 1)
        yield positive("block_scale", self.block_scale)

    def network(self, patch_size: Sequence[int], in_channels: int) -> nn.Module:
        """Build head, blocks and tail."""
        return ResidualNetwork(self, len(patch_size), in_channels)


class ResidualNetwork(nn.Module):
    """Head, residual blocks with a skip around all of them, and a tail of one output.

    The source lies on the grid of the target already, so that EDSR's layers that enlarge the image
    are left out (ours). A norm follows each convolution of a block, as in SRGAN's generator; EDSR
    itself has none.
    """

    def __init__(self, config: ResidualConfig, dims: int, in_channels: int) -> None:
        super().__init__()
        features, kernel = config.features, config.kernel
        self.head = conv(dims, in_channels, features, kernel)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(dims, features, kernel, config.norm, config.block_scale)
                for _ in range(config.blocks)
            )
        )
        self.body = conv(dims, features, features, kernel)
        self.tail = conv(dims, features, 1, kernel)
        self.reach = reach(config.norm, [kernel] * (2 * config.blocks + 3))

    def forward(self, source: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> (batch, 1, *spatial), any sides."""
        shallow = self.head(source)
        return self.tail(shallow + self.body(self.blocks(shallow)))

"""A feedback network, after SRFBN (Li et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from distsynth.errors import ConfigError
from distsynth.models.generator import GeneratorConfig
from distsynth.models.layers import Norm, conv, normalisation, transposed_conv
from distsynth.rules import Rule, counts


@dataclass(frozen=True)
class FeedbackConfig(GeneratorConfig):
    """SRFBN: a block whose output is its own input again, a fixed number of steps."""

    family: Literal["feedback"] = field(default="feedback", kw_only=True)
    features: int = 16
    """Feature maps of the block."""
    groups: int = 3
    """Pairs of an up- and a down-projection within the block, densely connected."""
    steps: int = 4
    """How often the block is applied."""
    norm: Norm = "none"

    @property
    def label(self) -> str:
        """The family, steps, groups and feature maps."""
        return f"{self.family} {self.steps}x{self.groups}x{self.features}"

    def rules(self) -> Iterable[Rule]:
        """Positive counts."""
        yield from counts(features=self.features, groups=self.groups, steps=self.steps)

    def network(self, patch_size: Sequence[int], in_channels: int) -> nn.Module:
        """Build stem, block and reconstruction."""
        self.check_patch(patch_size)
        return FeedbackNetwork(self, len(patch_size), in_channels)

    def multiple(self, patch_size: Sequence[int]) -> int:  # noqa: ARG002
        """The stem halves the sides once."""
        return 2

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse odd sides, and a map that instance norm could not standardise."""
        least = 4 if self.norm == "instance" else 2
        if any(side % 2 or side < least for side in patch_size):
            raise ConfigError(
                f"data.patch_size must have even sides of at least {least} for a feedback "
                f"generator, got {tuple(patch_size)}; change the sides"
            )


class FeedbackNetwork(nn.Module):
    """A stem at half the resolution, a feedback block unrolled in time, and a reconstruction.

    SRFBN enlarges a small image and adds an interpolated one. Here the source lies on the grid of
    the target already: the stem halves it, which brings a source of twice the voxel size to its own
    resolution, and `residual` adds the source (ours). The output is that of the last step; SRFBN
    compares those of all steps with the target. A norm follows the block in each step and is not
    shared between steps; SRFBN itself has none.
    """

    def __init__(self, config: FeedbackConfig, dims: int, in_channels: int) -> None:
        super().__init__()
        features = config.features
        self.stem = nn.Sequential(
            conv(dims, in_channels, 4 * features, 4, stride=2),
            activation(),
            conv(dims, 4 * features, features, 1),
            activation(),
        )
        self.block = FeedbackBlock(features, config.groups, dims)
        self.norms = nn.ModuleList(
            normalisation(config.norm, dims, features) for _ in range(config.steps)
        )
        self.reconstruction = nn.Sequential(
            transposed_conv(dims, features, features), activation(), conv(dims, features, 1, 3)
        )

    def forward(self, source: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> (batch, 1, *spatial), even sides."""
        given = self.stem(source)
        state = given
        for norm in self.norms:
            state = norm(self.block(given, state))
        return self.reconstruction(state)


class FeedbackBlock(nn.Module):
    """Up- and down-projections that each read all earlier ones of their own resolution."""

    def __init__(self, features: int, groups: int, dims: int) -> None:
        super().__init__()

        def fused(maps: int) -> nn.Module:
            return nn.Sequential(conv(dims, maps * features, features, 1), activation())

        self.enter = fused(2)
        self.before_up = nn.ModuleList(
            nn.Identity() if index == 0 else fused(index + 1) for index in range(groups)
        )
        self.up = nn.ModuleList(
            nn.Sequential(transposed_conv(dims, features, features), activation())
            for _ in range(groups)
        )
        self.before_down = nn.ModuleList(
            nn.Identity() if index == 0 else fused(index + 1) for index in range(groups)
        )
        self.down = nn.ModuleList(
            nn.Sequential(conv(dims, features, features, 4, stride=2), activation())
            for _ in range(groups)
        )
        self.leave = fused(groups)

    def forward(self, given: Tensor, state: Tensor) -> Tensor:
        """What the stem gives and the block's last output, same shape -> the next output."""
        low, high = [self.enter(torch.cat((given, state), dim=1))], []
        for before_up, up, before_down, down in zip(
            self.before_up, self.up, self.before_down, self.down, strict=True
        ):
            high.append(up(before_up(torch.cat(low, dim=1))))
            low.append(down(before_down(torch.cat(high, dim=1))))
        return self.leave(torch.cat(low[1:], dim=1))


def activation() -> nn.Module:
    """SRFBN's: a PReLU of one slope, which starts at 0.2."""
    return nn.PReLU(init=0.2)

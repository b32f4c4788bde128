"""DCSRN, the densely connected super-resolution network (section 6.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from distsynth.models.generator import GeneratorConfig
from distsynth.models.layers import Norm, WidthsLabel, conv, normalisation, reach
from distsynth.rules import Rule, odd_kernels, positive_widths


@dataclass(frozen=True)
class DenseConfig(WidthsLabel, GeneratorConfig):
    """DCSRN: each unit reads the outputs of all before it."""

    family: Literal["dense"] = field(default="dense", kw_only=True)
    channels: tuple[int, ...] = (24, 24, 24, 24, 24)
    """Width of the stem, then the growth of each dense unit."""
    kernels: tuple[int, ...] = (3,)
    """One odd kernel size, for every layer."""
    norm: Norm = "batch"

    def rules(self) -> Iterable[Rule]:
        """Positive widths and one odd kernel."""
        yield from positive_widths("channels", self.channels)
        yield from odd_kernels("kernels", self.kernels, 1)

    def network(self, patch_size: Sequence[int], in_channels: int) -> nn.Module:
        """Build the dense stack."""
        return DenseStack(self, len(patch_size), in_channels)


class DenseStack(nn.Module):
    """A stem convolution, then dense units that each read all earlier outputs.

    A unit is norm, ELU, convolution; so is the final layer, which reads everything (ours; the
    paper's parameter count holds).
    """

    def __init__(self, config: DenseConfig, dims: int, in_channels: int) -> None:
        super().__init__()
        kernel = config.kernels[0]
        width, *growths = config.channels

        def unit(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                normalisation(config.norm, dims, inputs),
                nn.ELU(),
                conv(dims, inputs, outputs, kernel),
            )

        self.stem = conv(dims, in_channels, width, kernel)
        self.units = nn.ModuleList()
        for growth in growths:
            self.units.append(unit(width, growth))
            width += growth
        self.last = unit(width, 1)
        self.reach = reach(config.norm, [kernel] * (len(growths) + 2))

    def forward(self, source: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> (batch, 1, *spatial), any sides."""
        features = self.stem(source)
        for unit in self.units:
            features = torch.cat((features, unit(features)), dim=1)
        return self.last(features)

"""DCSRN, the densely connected super-resolution network (section 6.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distsynth.config import GeneratorConfig
from distsynth.models.layers import conv, normalisation, reach


class DenseStack(nn.Module):
    """A stem convolution, then dense units that each read all earlier outputs.

    A unit is norm, ELU, convolution; so is the final layer, which reads everything (ours; the
    paper's parameter count holds).
    """

    def __init__(
        self, config: GeneratorConfig, patch_size: Sequence[int], in_channels: int
    ) -> None:
        super().__init__()
        dims, kernel = len(patch_size), config.kernels[0]
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

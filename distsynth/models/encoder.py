"""The encoder whose features the perceptual loss compares; trained on the cohort's own targets."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from distsynth.models.layers import conv, max_pool

WIDTHS = (16, 32, 64)
"""Feature maps of the levels, each of half the sides of the one before."""


class Encoder(nn.Module):
    """Three levels of two convolutions and ReLU, a max-pool between levels.

    Attributes:
        scale: Mean absolute feature of each level on target patches, by which they are divided, so
            that each level counts alike and lambda_perceptual means the same for every cohort.
    """

    scale: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(pairwise((1, *WIDTHS))):
            layers = [max_pool(dims)] if level else []
            for before in (inputs, outputs):
                layers += [conv(dims, before, outputs, 3), nn.ReLU()]
            self.levels.append(nn.Sequential(*layers))
        self.register_buffer("scale", torch.ones(len(WIDTHS)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(batch, 1, *spatial), sides of at least 4 -> features of each level over its scale."""
        scales = self.scale.unbind()
        return [level / scale for level, scale in zip(self.features(images), scales, strict=True)]

    def features(self, images: Tensor) -> list[Tensor]:
        """(batch, 1, *spatial) -> the features of each level as they are."""
        found, features = [], images
        for level in self.levels:
            features = level(features)
            found.append(features)
        return found

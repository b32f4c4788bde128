"""A recursive network of shared weights, after DRCN (Kim et al., CVPR 2016)."""

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
class RecursiveConfig(GeneratorConfig):
    """DRCN: one convolution applied again and again, and an average over all recursions."""

    family: Literal["recursive"] = field(default="recursive", kw_only=True)
    features: int = 32
    """Feature maps of every layer."""
    recursions: int = 8
    """How often the shared convolution is applied."""
    kernel: int = 3
    """Odd kernel size of every layer."""
    norm: Norm = "none"

    @property
    def label(self) -> str:
        """The family, recursions and feature maps."""
        return f"{self.family} {self.recursions}x{self.features}"

    def rules(self) -> Iterable[Rule]:
        """Positive counts and an odd kernel."""
        yield from counts(features=self.features, recursions=self.recursions)
        yield from odd_kernels("kernel", (self.kernel,), 1)

    def network(self, patch_size: Sequence[int], in_channels: int) -> nn.Module:
        """Build the embedding, the recursion and the reconstruction."""
        return RecursiveNetwork(self, len(patch_size), in_channels)


class RecursiveNetwork(nn.Module):
    """Embedding, one shared convolution, and a reconstruction that every recursion goes through.

    The output is the mean of the reconstructions under weights that are learnt and start equal, as
    in DRCN. DRCN also compares each reconstruction with the target, in a loss that fades away; here
    the losses see the mean alone (ours). DRCN adds the source to each reconstruction: `residual`
    does so once for all of them, which is the same while the weights sum to 1. A norm is not
    shared: each recursion has its own, for its statistics are its own. DRCN itself has none.
    """

    def __init__(self, config: RecursiveConfig, dims: int, in_channels: int) -> None:
        super().__init__()
        features, kernel, depth = config.features, config.kernel, config.recursions
        self.embedding = nn.Sequential(
            conv(dims, in_channels, features, kernel),
            nn.ReLU(),
            conv(dims, features, features, kernel),
            nn.ReLU(),
        )
        self.shared = conv(dims, features, features, kernel)
        self.norms = nn.ModuleList(normalisation(config.norm, dims, features) for _ in range(depth))
        self.reconstruction = nn.Sequential(
            conv(dims, features, features, kernel), nn.ReLU(), conv(dims, features, 1, kernel)
        )
        self.weights = nn.Parameter(torch.full((depth,), 1 / depth))
        self.reach = reach(config.norm, [kernel] * (depth + 4))

    def forward(self, source: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> (batch, 1, *spatial), any sides."""
        features = self.embedding(source)
        synthetic = torch.zeros_like(source[:, :1])
        for weight, norm in zip(self.weights, self.norms, strict=True):
            features = torch.relu(norm(self.shared(features)))
            synthetic = synthetic + weight * self.reconstruction(features)
        return synthetic

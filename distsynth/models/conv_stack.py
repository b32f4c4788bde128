"""A plain stack of convolutions: FCN 1 (section 6.2), DCGAN 1 to 4 (section 6.3, figure 13)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from distsynth.config import GeneratorConfig
from distsynth.models.layers import conv, kernel_sizes, normalisation, reach


class ConvStack(nn.Module):
    """Convolutions that keep the sides; norm and ReLU after each but the last.

    The paper's parameter counts hold with a norm after each hidden layer, and for DCGAN 1 after
    each but the first: `norm_first=False` (ours).
    """

    def __init__(
        self, config: GeneratorConfig, patch_size: Sequence[int], in_channels: int
    ) -> None:
        super().__init__()
        dims = len(patch_size)
        *hidden, last = kernel_sizes(config.kernels, len(config.channels) + 1)
        self.reach = reach(config.norm, (*hidden, last))
        widths = pairwise((in_channels, *config.channels))
        layers = []
        for index, ((inputs, outputs), kernel) in enumerate(zip(widths, hidden, strict=True)):
            layers.append(conv(dims, inputs, outputs, kernel))
            if index > 0 or config.norm_first:
                layers.append(normalisation(config.norm, dims, outputs))
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers, conv(dims, config.channels[-1], 1, last))

    def forward(self, source: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> (batch, 1, *spatial), any sides."""
        return self.layers(source)

"""FCN 2: max-pooled down, transposed-convolved up, no skip connections (section 6.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from distsynth.config import GeneratorConfig
from distsynth.errors import ConfigError
from distsynth.models.layers import conv, kernel_sizes, max_pool, normalisation, transposed_conv


class EncoderDecoder(nn.Module):
    """Each encoder level is conv, norm, ReLU, max-pool; each decoder level doubles the sides.

    The decoder mirrors the encoder's widths with 4-wide transposed convolutions; norm and ReLU
    follow each but the last (ours; the paper's parameter count holds).
    """

    def __init__(
        self, config: GeneratorConfig, patch_size: Sequence[int], in_channels: int
    ) -> None:
        super().__init__()
        dims, widths = len(patch_size), config.channels
        self.multiple = 2 ** len(widths)
        if any(side % self.multiple for side in patch_size):
            raise ConfigError(
                f"data.patch_size must have sides divisible by {self.multiple} for an "
                f"encoder-decoder of {len(widths)} levels, got {tuple(patch_size)}; change the "
                "sides or shorten generator.channels"
            )
        kernels = kernel_sizes(config.kernels, len(widths))
        layers = []
        for (inputs, outputs), kernel in zip(
            pairwise((in_channels, *widths)), kernels, strict=True
        ):
            layers += [
                conv(dims, inputs, outputs, kernel),
                normalisation(config.norm, dims, outputs),
                nn.ReLU(),
                max_pool(dims),
            ]
        for inputs, outputs in pairwise(reversed(widths)):
            layers += [
                transposed_conv(dims, inputs, outputs),
                normalisation(config.norm, dims, outputs),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, transposed_conv(dims, widths[0], 1))

    def forward(self, source: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> (batch, 1, *spatial), sides divisible by `multiple`."""
        return self.layers(source)

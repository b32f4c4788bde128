"""FCN 2: max-pooled down, transposed-convolved up, no skip connections (section 6.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from distsynth.errors import ConfigError
from distsynth.models.generator import GeneratorConfig
from distsynth.models.layers import (
    Norm,
    WidthsLabel,
    conv,
    kernel_sizes,
    max_pool,
    normalisation,
    transposed_conv,
)
from distsynth.rules import Rule, odd_kernels, positive_widths


@dataclass(frozen=True)
class EncoderDecoderConfig(WidthsLabel, GeneratorConfig):
    """FCN 2: an encoder that halves the sides at each level, and a decoder that mirrors it."""

    family: Literal["encoder-decoder"] = field(default="encoder-decoder", kw_only=True)
    channels: tuple[int, ...] = (32, 64, 64)
    """Widths of the encoder's levels, which the decoder mirrors."""
    kernels: tuple[int, ...] = (5, 3, 3)
    """Odd kernel sizes of the encoder: one a level, or one that serves every level."""
    norm: Norm = "batch"

    def rules(self) -> Iterable[Rule]:
        """Positive widths and odd kernels, as many as there are levels."""
        yield from positive_widths("channels", self.channels)
        yield from odd_kernels("kernels", self.kernels, len(self.channels))

    def network(self, patch_size: Sequence[int], in_channels: int) -> nn.Module:
        """Build encoder and decoder."""
        self.check_patch(patch_size)
        return EncoderDecoder(self, len(patch_size), in_channels)

    def multiple(self, patch_size: Sequence[int]) -> int:  # noqa: ARG002
        """Two to the power of the levels."""
        return 2 ** len(self.channels)

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse sides that cannot be halved at each level."""
        multiple = self.multiple(patch_size)
        if any(side % multiple for side in patch_size):
            raise ConfigError(
                f"data.patch_size must have sides divisible by {multiple} for an "
                f"encoder-decoder of {len(self.channels)} levels, got {tuple(patch_size)}; change "
                "the sides or shorten generator.channels"
            )


class EncoderDecoder(nn.Module):
    """Each encoder level is conv, norm, ReLU, max-pool; each decoder level doubles the sides.

    The decoder mirrors the encoder's widths with 4-wide transposed convolutions; norm and ReLU
    follow each but the last (ours; the paper's parameter count holds).
    """

    def __init__(self, config: EncoderDecoderConfig, dims: int, in_channels: int) -> None:
        super().__init__()
        widths = config.channels
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

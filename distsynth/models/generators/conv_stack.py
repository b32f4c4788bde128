"""A plain stack of convolutions: FCN 1 (section 6.2), DCGAN 1 to 4 (section 6.3, figure 13)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from distsynth.models.generator import GeneratorConfig
from distsynth.models.layers import Norm, WidthsLabel, conv, kernel_sizes, normalisation, reach
from distsynth.rules import Rule, odd_kernels, positive_widths


@dataclass(frozen=True)
class ConvStackConfig(WidthsLabel, GeneratorConfig):
    """A stack of convolutions that keep the sides of the patch."""

    family: Literal["conv"] = field(default="conv", kw_only=True)
    channels: tuple[int, ...] = (8, 20, 24, 4)
    """Widths of the hidden layers; one more convolution makes the output."""
    kernels: tuple[int, ...] = (3,)
    """Odd kernel sizes: one more than there are widths, or one that serves every layer."""
    norm: Norm = "batch"
    norm_first: bool = True
    """Whether the first layer is normalised too (DCGAN 1 does not)."""

    def rules(self) -> Iterable[Rule]:
        """Positive widths and odd kernels, as many as there are layers."""
        yield from positive_widths("channels", self.channels)
        yield from odd_kernels("kernels", self.kernels, len(self.channels) + 1)

    def network(self, patch_size: Sequence[int], in_channels: int) -> nn.Module:
        """Build the stack."""
        return ConvStack(self, len(patch_size), in_channels)


class ConvStack(nn.Module):
    """Convolutions that keep the sides; norm and ReLU after each but the last.

    The paper's parameter counts hold with a norm after each hidden layer, and for DCGAN 1 after
    each but the first: `norm_first=False` (ours).
    """

    def __init__(self, config: ConvStackConfig, dims: int, in_channels: int) -> None:
        super().__init__()
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

"""How weights start: PyTorch's default, or the normal distribution of pix2pix."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Initialisation = Literal["default", "normal"]
DEVIATION = 0.02
"""Of the weights of pix2pix."""


def initialise(network: nn.Module, how: Initialisation) -> None:
    """Draw a network's weights, in place.

    Args:
        network: Any network; parts that are no convolution and no norm keep what they have, and
            so do convolutions that start at zero.
        how: "default" leaves PyTorch's initialisation. "normal" is pix2pix's: convolutions from
            N(0, 0.02), scales of norms from N(1, 0.02), all biases 0.
    """
    if how == "default":
        return
    for part in network.modules():
        if getattr(part, "starts_at_zero", False):
            continue
        if isinstance(part, _ConvNd):
            nn.init.normal_(part.weight, 0.0, DEVIATION)
        elif isinstance(part, _NormBase) and part.affine:
            nn.init.normal_(part.weight, 1.0, DEVIATION)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)

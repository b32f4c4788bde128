"""Spectral normalisation: layers whose largest singular value is 1 (Miyato et al., ICLR 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

FIRST_ITERATIONS = 15
"""Of the power iteration when a layer is made; afterwards one an optimizer step is enough."""
EPSILON = 1e-12


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value, as far as a power iteration knows it.

    The vectors of the iteration move once an optimizer step (`refresh`) and not in each forward, as
    in PyTorch: so they do not depend on the number of micro-batches, and all ranks have the same.

    Attributes:
        left: Estimate of the left singular vector, shape (outputs,).
        right: Of the right one, shape (inputs times the kernel's size,).
    """

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        for name, length in (("left", matrix.shape[0]), ("right", matrix.shape[1])):
            self.register_buffer(name, F.normalize(torch.randn(length), dim=0))
        for _ in range(FIRST_ITERATIONS):
            self.iterate(weight)

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        """Take one step of the power iteration for a weight as it is now."""
        matrix = weight.flatten(1)
        self.right.copy_(F.normalize(matrix.T @ self.left, dim=0, eps=EPSILON))
        self.left.copy_(F.normalize(matrix @ self.right, dim=0, eps=EPSILON))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with a largest singular value of 1, same shape, in its own precision."""
        with torch.autocast(weight.device.type, enabled=False):
            largest = torch.dot(self.left, torch.mv(weight.flatten(1), self.right))
            return weight / largest.clamp(min=EPSILON)


def add_spectral_norm(network: nn.Module) -> None:
    """Normalise all convolutions and linear layers of a network, in place."""
    for part in list(network.modules()):
        if isinstance(part, _ConvNd | nn.Linear):
            register_parametrization(part, "weight", SpectralNorm(part.weight))


def refresh(network: nn.Module) -> None:
    """Follow the weights of a network after an optimizer step; nothing without spectral norm."""
    for part in network.modules():
        if isinstance(part, ParametrizationList):
            for norm in part:
                if isinstance(norm, SpectralNorm):
                    norm.iterate(part.original)

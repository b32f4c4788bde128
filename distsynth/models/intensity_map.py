"""A curve from source to target intensity that a generator applies before all else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LOW, STEP, KNOTS = -4.0, 0.1, 161
"""Evenly spaced knots of the curve, in standardised units: up to 12."""


class IntensityCurve(nn.Module):
    """A curve of straight lines between knots, continued beyond them; it starts as no change.

    Attributes:
        values: Target intensity at each knot; kept with the weights, and changed by no gradient.
    """

    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", LOW + STEP * torch.arange(KNOTS, dtype=torch.float32))

    def forward(self, source: Tensor) -> Tensor:
        """Any shape -> the same shape, float32."""
        place = (source.float() - LOW) / STEP
        index = place.detach().floor().clamp(0, KNOTS - 2)
        left = index.long()
        low, high = self.values[left], self.values[left + 1]
        return low + (place - index) * (high - low)

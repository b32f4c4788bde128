"""The gradient difference term: edges that differ between synthetic and target (eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distsynth.losses.term import Outputs, Term, TermConfig, check_same_shape


@dataclass(frozen=True)
class GradientConfig(TermConfig):
    """Fields of the gradient difference term."""

    lambda_gradient: float = 0.0
    """Weight of the gradient difference term (eq. 4)."""


class GradientDifference(Term):
    """Mean squared difference of the gradients along each axis."""

    name = "gradient"
    config = GradientConfig

    def __init__(self, config: GradientConfig) -> None:  # noqa: ARG002
        super().__init__()

    @classmethod
    def description(cls, config: Any) -> str:  # noqa: ARG003
        """The term in a few words."""
        return "gradient difference"

    def forward(self, outputs: Outputs) -> Tensor:
        """The difference, a scalar."""
        return gradient_difference_loss(outputs.synthetic, outputs.target)


def gradient_difference_loss(synthetic: Tensor, target: Tensor) -> Tensor:
    """Penalise edges that differ between synthetic and target (eq. 4).

    The gradient along an axis is the signed difference of neighbouring voxels, kernel [-1, 1].

    Args:
        synthetic: Generator output, shape (batch, 1, *spatial), standardised intensity (zero mean,
            unit variance, unitless).
        target: Registered high-field patches, same shape and scale.

    Returns:
        Scalar. Mean over voxels for each axis where the paper sums, so that lambda_gradient does
        not depend on the patch size (ours); summed over axes.

    Raises:
        ValueError: If shapes differ or a side is under 2 voxels.
    """
    check_same_shape(synthetic, target)
    if min(synthetic.shape[2:]) < 2:
        raise ValueError(
            "loss.lambda_gradient needs patch sides of at least 2 voxels, got "
            f"{tuple(synthetic.shape[2:])}"
        )
    # Differences are linear: the gradient of the difference is the difference of the gradients.
    difference = synthetic.float() - target.float()
    axes = range(2, difference.ndim)
    return torch.stack([difference.diff(dim=axis).square().mean() for axis in axes]).sum()

"""The reconstruction term: how far synthetic is from target, voxel by voxel (eq. 3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distsynth.losses.term import MaskedConfig, Outputs, Term, check_same_shape
from distsynth.rules import Rule, positive

Norm = Literal["l1", "l2", "charbonnier"]
DIFFERENCES: dict[Norm, str] = {
    "l1": "mean absolute difference",
    "l2": "mean squared difference",
    "charbonnier": "mean of a smooth absolute difference",
}


@dataclass(frozen=True)
class ReconstructionConfig(MaskedConfig):
    """Fields of the reconstruction term."""

    lambda_recon: float = 1.0
    """Weight of the reconstruction term (eq. 3)."""
    recon: Norm = "l1"
    """Norm of the reconstruction term: mean absolute or mean squared difference; or Charbonnier,
    the mean of sqrt(d² + recon_epsilon²)."""
    recon_epsilon: float = field(default=1e-3, kw_only=True)
    """Difference below which the Charbonnier term is nearly quadratic, in standardised units."""

    def rules(self) -> Iterable[Rule]:
        """The smoothing is positive."""
        yield positive("recon_epsilon", self.recon_epsilon)


class Reconstruction(Term):
    """Mean absolute or mean squared difference."""

    name = "recon"
    config = ReconstructionConfig

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        self.norm: Norm = config.recon
        self.epsilon = config.recon_epsilon
        self.weights = config.weights

    @classmethod
    def label(cls, config: Any) -> str:
        """The norm."""
        return config.recon

    @classmethod
    def description(cls, config: Any) -> str:
        """The term in a few words."""
        return f"reconstruction ({DIFFERENCES[config.recon]})"

    def forward(self, outputs: Outputs) -> Tensor:
        """The difference, a scalar."""
        weights = self.weights(outputs.inside)
        return reconstruction_loss(
            outputs.synthetic, outputs.target, self.norm, self.epsilon, weights
        )


def reconstruction_loss(
    synthetic: Tensor,
    target: Tensor,
    norm: Norm,
    epsilon: float = 1e-3,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean absolute, mean squared (eq. 3) or smooth absolute difference.

    Args:
        synthetic: Generator output, shape (batch, 1, *spatial), standardised intensity (zero mean,
            unit variance, unitless).
        target: Registered high-field patches, same shape and scale.
        norm: "l1", "l2" or "charbonnier".
        epsilon: Smoothing of Charbonnier, in standardised units.
        weights: By which the difference at each voxel is multiplied, same shape (ours).

    Returns:
        Scalar. Mean over voxels where the paper has a norm, so that lambda_recon does not depend
        on the patch size (ours). Weights do not change what the mean is divided by: a voxel of
        weight 1 counts as much as without them, in any batch and micro-batch.

    Raises:
        ValueError: If shapes differ or the norm is unknown.
    """
    check_same_shape(synthetic, target)
    reduction = "mean" if weights is None else "none"
    if norm == "l1":
        found = F.l1_loss(synthetic.float(), target.float(), reduction=reduction)
    elif norm == "l2":
        found = F.mse_loss(synthetic.float(), target.float(), reduction=reduction)
    elif norm == "charbonnier":
        found = torch.sqrt((synthetic.float() - target.float()).square() + epsilon**2)
    else:
        raise ValueError(f"loss.recon must be l1, l2 or charbonnier, got {norm}")
    return (found if weights is None else found * weights).mean()

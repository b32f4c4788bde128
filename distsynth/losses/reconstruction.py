"""The reconstruction term: how far synthetic is from target, voxel by voxel (eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from distsynth.losses.term import Outputs, Term, TermConfig, check_same_shape

Norm = Literal["l1", "l2"]
DIFFERENCES: dict[Norm, str] = {"l1": "mean absolute difference", "l2": "mean squared difference"}


@dataclass(frozen=True)
class ReconstructionConfig(TermConfig):
    """Fields of the reconstruction term."""

    lambda_recon: float = 1.0
    """Weight of the reconstruction term (eq. 3)."""
    recon: Norm = "l1"
    """Norm of the reconstruction term: mean absolute or mean squared difference."""


class Reconstruction(Term):
    """Mean absolute or mean squared difference."""

    name = "recon"
    config = ReconstructionConfig

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        self.norm: Norm = config.recon

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
        return reconstruction_loss(outputs.synthetic, outputs.target, self.norm)


def reconstruction_loss(synthetic: Tensor, target: Tensor, norm: Norm) -> Tensor:
    """Mean absolute or mean squared difference (eq. 3).

    Args:
        synthetic: Generator output, shape (batch, 1, *spatial), standardised intensity (zero mean,
            unit variance, unitless).
        target: Registered high-field patches, same shape and scale.
        norm: "l1" or "l2".

    Returns:
        Scalar. Mean over voxels where the paper has a norm, so that lambda_recon does not depend
        on the patch size (ours).

    Raises:
        ValueError: If shapes differ or the norm is unknown.
    """
    check_same_shape(synthetic, target)
    if norm == "l1":
        return F.l1_loss(synthetic.float(), target.float())
    if norm == "l2":
        return F.mse_loss(synthetic.float(), target.float())
    raise ValueError(f"loss.recon must be l1 or l2, got {norm}")

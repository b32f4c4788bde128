"""The gradient difference term: edges that differ between synthetic and target (eq. 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from distsynth.errors import ConfigError
from distsynth.losses.term import Outputs, Term, TermConfig, check_same_shape
from distsynth.rules import Rule, at_least

Form = Literal["signed", "absolute"]


@dataclass(frozen=True)
class GradientConfig(TermConfig):
    """Fields of the gradient difference term."""

    lambda_gradient: float = 0.0
    """Weight of the gradient difference term (eq. 4)."""
    gradient_form: Form = field(default="signed", kw_only=True)
    """signed compares the differences of neighbouring voxels. absolute, as in the code that the
    paper cites, compares their absolute values, with zeros beyond the patch: at its last voxels
    the intensity itself is compared, which teaches the network about the border of the patch."""
    gradient_margin: int = field(default=0, kw_only=True)
    """Voxels at each border of a patch that the term leaves out (ours): no difference that touches
    them counts."""

    def rules(self) -> Iterable[Rule]:
        """The margin is not negative."""
        yield at_least("gradient_margin", self.gradient_margin, 0)

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse a margin that leaves no pair of voxels."""
        if min(patch_size) - 2 * self.gradient_margin < 2:
            raise ConfigError(
                "loss.gradient_margin must leave at least 2 voxels of each side of data.patch_size "
                f"{tuple(patch_size)}, got {self.gradient_margin}"
            )


class GradientDifference(Term):
    """Mean squared difference of the gradients along each axis."""

    name = "gradient"
    config = GradientConfig

    def __init__(self, config: GradientConfig) -> None:
        super().__init__()
        self.form: Form = config.gradient_form
        self.margin = config.gradient_margin

    @classmethod
    def description(cls, config: Any) -> str:
        """The term in a few words."""
        form = "" if config.gradient_form == "signed" else f" ({config.gradient_form})"
        return f"gradient difference{form}"

    def forward(self, outputs: Outputs) -> Tensor:
        """The difference, a scalar."""
        return gradient_difference_loss(outputs.synthetic, outputs.target, self.form, self.margin)


def gradient_difference_loss(
    synthetic: Tensor, target: Tensor, form: Form = "signed", margin: int = 0
) -> Tensor:
    """Penalise edges that differ between synthetic and target (eq. 4).

    The gradient along an axis is the difference of neighbouring voxels, kernel [-1, 1]. The text of
    the paper speaks of gradients, the code that it cites takes absolute differences of patches
    padded by zeros: both forms are here.

    Args:
        synthetic: Generator output, shape (batch, 1, *spatial), standardised intensity (zero mean,
            unit variance, unitless).
        target: Registered high-field patches, same shape and scale.
        form: "signed", within the patch; or "absolute", with a zero behind the last voxel of each
            axis, unless a margin leaves that voxel out.
        margin: Voxels at each border that no difference may touch.

    Returns:
        Scalar. Mean over voxels for each axis where the paper sums, so that lambda_gradient does
        not depend on the patch size (ours); summed over axes.

    Raises:
        ValueError: If shapes differ or the margin leaves less than 2 voxels of a side.
    """
    check_same_shape(synthetic, target)
    axes = range(2, synthetic.ndim)
    if min(synthetic.shape[2:]) - 2 * margin < 2:
        raise ValueError(
            "loss.lambda_gradient needs patch sides of at least 2 voxels within "
            f"loss.gradient_margin {margin}, got {tuple(synthetic.shape[2:])}"
        )
    synthetic, target = (_inside(image.float(), margin) for image in (synthetic, target))
    if form == "signed":
        # Differences are linear: the gradient of the difference is that of the gradients.
        difference = synthetic - target
        return torch.stack([difference.diff(dim=axis).square().mean() for axis in axes]).sum()
    terms = [
        (_steps(synthetic, axis, margin) - _steps(target, axis, margin)).square().mean()
        for axis in axes
    ]
    return torch.stack(terms).sum()


def _inside(image: Tensor, margin: int) -> Tensor:
    """The image without a margin at each of its borders."""
    for axis in range(2, image.ndim):
        image = image.narrow(axis, margin, image.shape[axis] - 2 * margin)
    return image


def _steps(image: Tensor, axis: int, margin: int) -> Tensor:
    """Absolute differences along an axis, the last one from zero where the patch ends."""
    last = torch.zeros_like(image.narrow(axis, 0, 1)) if margin == 0 else None
    return image.diff(dim=axis, append=last).abs()

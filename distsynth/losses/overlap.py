"""The gradient difference of a patch that is stitched from overlapping windows.

What is evaluated is stitched, and seams stand where windows overlap; a loss on single patches sees
neither. This one cuts each patch into windows as prediction cuts a volume, and compares the
gradients of what they give together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distsynth.losses.gradient import gradient_difference_loss
from distsynth.losses.term import Outputs, Term, TermConfig


@dataclass(frozen=True)
class OverlapConfig(TermConfig):
    """Fields of the overlap term."""

    lambda_overlap: float = field(default=0.0, kw_only=True)
    """Weight of the gradient difference of the patch stitched from overlapping windows (ours). It
    needs a generator that takes windows of three quarters of the patch or less, and one more
    forward of about 2.3 times the patch in 2D, 3.4 times in 3D."""


class Overlap(Term):
    """Eq. 4 on a stitched patch.

    With W_k the cut of window k out of the patch and W_k' its place in it, the stitched patch is
    S(x) = (sum_k W_k' G(W_k x)) / (sum_k W_k' 1), the plain average of overlaps, and the loss is
    the gradient difference of S(source) and target, within the patch and without padding. There is
    a window in each corner of the patch, 4 in 2D and 8 in 3D (ours).
    """

    name = "overlap"
    config = OverlapConfig

    def __init__(self, config: OverlapConfig) -> None:  # noqa: ARG002
        super().__init__()

    @classmethod
    def description(cls, config: Any) -> str:  # noqa: ARG003
        """The term in a few words."""
        return "gradient difference of stitched windows"

    def forward(self, outputs: Outputs) -> Tensor | None:
        """The difference, a scalar; None without the generator and its source."""
        generator, source = outputs.generator, outputs.source
        if generator is None or source is None:
            return None
        sides = window_sides(source.shape[2:], generator.multiple)
        if sides is None:
            raise ValueError(
                f"loss.lambda_overlap needs windows of a patch of {tuple(source.shape[2:])} whose "
                f"sides are divisible by {generator.multiple}"
            )
        windows = corner_windows(source.shape[2:], sides)
        # One forward for all: each window is a patch of the batch.
        predicted = generator(torch.cat([source[(..., *window)] for window in windows])).float()
        total = torch.zeros_like(outputs.target, dtype=torch.float32)
        count = torch.zeros_like(total[:1])
        for window, part in zip(windows, predicted.chunk(len(windows)), strict=True):
            total[(..., *window)] += part
            count[(..., *window)] += 1
        return gradient_difference_loss(total / count, outputs.target)


def window_sides(patch_size: Sequence[int], multiple: int) -> tuple[int, ...] | None:
    """Sides of the windows: three quarters of the patch's, rounded down to what the network takes.

    Args:
        patch_size: Sides in voxels.
        multiple: By which the network's sides must be divisible.

    Returns:
        One side an axis; None if windows so short would not overlap.
    """
    sides = tuple(3 * side // 4 // multiple * multiple for side in patch_size)
    meet = all(2 * short > side for short, side in zip(sides, patch_size, strict=True))
    return sides if meet else None


def corner_windows(patch_size: Sequence[int], sides: Sequence[int]) -> list[tuple[slice, ...]]:
    """A window in each corner of a patch, as slices of its spatial axes."""
    along = [
        (slice(0, short), slice(side - short, side))
        for side, short in zip(patch_size, sides, strict=True)
    ]
    return list(itertools.product(*along))

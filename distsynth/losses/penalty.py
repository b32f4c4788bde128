"""Penalties on the discriminator's gradient with respect to the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["none", "gradient", "r1"]
Score = Callable[[Tensor], Tensor]
"""Images (batch, 1, *spatial) -> logits (batch, 1) or (batch, 1, *map), in float32."""


class Penalty:
    """What the discriminator's loss adds in some or all of its updates.

    Args:
        kind: "gradient" or "r1".
        weight: On the mean over steps.
        every: Steps between updates with the penalty, which then counts as much as all of them.
    """

    def __init__(self, kind: Kind, weight: float, every: int) -> None:
        self.kind, self._weight, self._every = kind, weight, every

    def weight_at(self, step: int) -> float:
        """The weight in a step of the run; 0 in a step without the penalty."""
        return 0.0 if step % self._every else self._weight * self._every

    def __call__(self, score: Score, real: Tensor, fake: Tensor, shares: Tensor | None) -> Tensor:
        """The penalty, a scalar.

        Args:
            score: The discriminator.
            real: Target patches.
            fake: Synthetic patches, same shape.
            shares: Of the target in each interpolated patch, shape (batch,).

        Raises:
            ValueError: If the gradient penalty lacks its shares.
        """
        if self.kind == "r1":
            return r1_penalty(score, real)
        if shares is None:
            raise ValueError("the gradient penalty needs shares to interpolate by, got None")
        return gradient_penalty(score, real, fake, shares)


def gradient_penalty(score: Score, real: Tensor, fake: Tensor, shares: Tensor) -> Tensor:
    """How far the discriminator's slope is from 1 (Gulrajani et al., NeurIPS 2017).

    mean((|grad D(x)| - 1)^2) with x = shares * real + (1 - shares) * fake, where D is the mean
    logit of a patch and the norm sums over its voxels.

    Args:
        score: The discriminator.
        real: Target patches, shape (batch, 1, *spatial).
        fake: Synthetic patches, same shape.
        shares: Shape (batch,), from 0 to 1.

    Returns:
        Scalar, differentiable with respect to the discriminator.
    """
    shares = shares.view(-1, *[1] * (real.ndim - 1))
    between = shares * real + (1 - shares) * fake
    squares = _squared_slopes(score, between)
    # The root has no slope at 0.
    return ((squares + 1e-12).sqrt() - 1).square().mean()


def r1_penalty(score: Score, real: Tensor) -> Tensor:
    """The mean squared slope of the discriminator at the target (Mescheder et al., ICML 2018).

    mean(|grad D(x)|^2), D and the norm as in `gradient_penalty`; a weight of w is their gamma of
    2 w.

    Args:
        score: The discriminator.
        real: Target patches, shape (batch, 1, *spatial).

    Returns:
        Scalar, differentiable with respect to the discriminator.
    """
    return _squared_slopes(score, real).mean()


def _squared_slopes(score: Score, images: Tensor) -> Tensor:
    """|grad D|^2 of each image, shape (batch,); the graph is kept for the second backward."""
    images = images.detach().float().requires_grad_()
    scores = score(images).flatten(1).mean(dim=1)
    (slopes,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return slopes.flatten(1).square().sum(dim=1)

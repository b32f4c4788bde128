"""Losses of generator and discriminator (section 6.4, equations 1 to 5).

All are computed in float32, under autocast too, and never wait for the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distsynth.config import LossConfig
from distsynth.errors import ConfigError


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Half the cross-entropy of judging real as 1 and fake as 0 (eq. 1).

    Args:
        real_logits: Judgement of target patches, shape (batch, 1) or (batch, 1, *map).
        fake_logits: Judgement of synthetic patches, same shape.

    Returns:
        Scalar, mean over batch and map.
    """
    fake_logits = fake_logits.float()
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return (_judged_real(real_logits) + fake) / 2


def adversarial_loss(fake_logits: Tensor) -> Tensor:
    """Cross-entropy of the discriminator taking fake for 1 (eq. 2).

    Args:
        fake_logits: Judgement of synthetic patches, shape (batch, 1) or (batch, 1, *map).

    Returns:
        Scalar, mean over batch and map.
    """
    return _judged_real(fake_logits)


def reconstruction_loss(synthetic: Tensor, target: Tensor, norm: str) -> Tensor:
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


class GeneratorLoss(nn.Module):
    """The generator's weighted sum of losses (eq. 5).

    Args:
        config: The weights; a term of weight 0 is not computed.
        perceptual: Needed when lambda_perceptual is positive: a PerceptualLoss.

    Raises:
        ConfigError: If lambda_perceptual is positive and there is no perceptual loss.
    """

    def __init__(self, config: LossConfig, perceptual: nn.Module | None = None) -> None:
        super().__init__()
        if config.lambda_perceptual > 0 and perceptual is None:
            raise ConfigError(
                "loss.lambda_perceptual must be 0 without a perceptual loss, got "
                f"{config.lambda_perceptual}; pass PerceptualLoss(config.vgg_weights)"
            )
        self.config = config
        self.perceptual = perceptual

    def forward(
        self, synthetic: Tensor, target: Tensor, fake_logits: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the terms.

        Args:
            synthetic: Generator output, shape (batch, 1, *spatial), standardised intensity.
            target: Registered high-field patches, same shape and scale.
            fake_logits: The discriminator's judgement of synthetic; without it there is no
                adversarial term.

        Returns:
            The weighted total, a scalar, and the unweighted terms that it sums, detached for the
            log: some of "bce", "recon", "gradient", "perceptual".
        """
        config = self.config
        weighted: dict[str, tuple[float, Tensor]] = {}
        if config.lambda_bce > 0 and fake_logits is not None:
            weighted["bce"] = config.lambda_bce, adversarial_loss(fake_logits)
        if config.lambda_recon > 0:
            recon = reconstruction_loss(synthetic, target, config.recon)
            weighted["recon"] = config.lambda_recon, recon
        if config.lambda_gradient > 0:
            gradient = gradient_difference_loss(synthetic, target)
            weighted["gradient"] = config.lambda_gradient, gradient
        if self.perceptual is not None and config.lambda_perceptual > 0:
            perceptual = self.perceptual(synthetic, target)
            weighted["perceptual"] = config.lambda_perceptual, perceptual
        total = torch.stack([weight * term for weight, term in weighted.values()]).sum()
        return total, {name: term.detach() for name, (_, term) in weighted.items()}


def check_same_shape(synthetic: Tensor, target: Tensor) -> None:
    """Raise ValueError if the shapes differ: torch would broadcast them silently."""
    if synthetic.shape != target.shape:
        raise ValueError(
            f"synthetic and target must have the same shape, got {tuple(synthetic.shape)} and "
            f"{tuple(target.shape)}"
        )


def _judged_real(logits: Tensor) -> Tensor:
    """Mean cross-entropy of logits with label 1."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

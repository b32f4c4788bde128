"""Forms of the loss's terms, and how the generator's weights start."""

from __future__ import annotations

from ray import tune

from tune_spaces.domains import Space, zero_or_log

ADVERSARIAL = (
    *("bce", "bce-r1", "least-squares", "hinge", "hinge-spectral"),
    *("wasserstein", "wasserstein-spectral", "kl-spectral"),
)
"""Adversarial losses with what each asks of the discriminator; `distsynth.presets` defines them."""


def adversarial_losses() -> Space:
    """The adversarial loss by its name, how often the discriminator learns, feature matching.

    A name stands for several fields, so that what does not go together is never drawn: a loss or a
    penalty that needs a bounded slope comes without BatchNorm in the discriminator.
    """
    return {
        "adversarial": tune.choice(list(ADVERSARIAL)),
        "optim.discriminator_steps": tune.choice([1, 2, 5]),
        "loss.lambda_matching": zero_or_log(0.01, 10.0, 0.5),
    }


def loss_forms() -> Space:
    """What the terms that compare pairs compute, whatever their weight."""
    return {
        "loss.recon": tune.choice(["l1", "l2", "charbonnier"]),
        "loss.mask_weight": tune.choice([1.0, 0.5, 0.1]),
        "loss.gradient_form": tune.choice(["signed", "absolute"]),
        "loss.gradient_margin": tune.choice([0, 1, 2]),
    }


def further_terms() -> Space:
    """Structure and spectrum beside the paper's terms, each in a half of draws."""
    return {
        "loss.lambda_structure": zero_or_log(0.01, 3.0, 0.5),
        "loss.lambda_frequency": zero_or_log(0.01, 3.0, 0.5),
    }


def overlap() -> Space:
    """The gradient difference of the patch stitched from windows, in half of draws.

    It needs a generator that takes windows of three quarters of the patch: a network that is too
    deep for the patch is drawn again. Each step has one more forward, of 2.3 times the patch in 2D.
    """
    return {"loss.lambda_overlap": zero_or_log(0.02, 8.0, 0.5)}


def initialisation() -> Space:
    """How the generator's weights start: PyTorch's default, or pix2pix's normal distribution."""
    return {"generator.init": tune.choice(["default", "normal"])}

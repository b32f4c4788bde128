"""Forms of the loss's terms, and how the generator's weights start."""

from __future__ import annotations

from ray import tune

from tune_spaces.domains import Space


def loss_forms() -> Space:
    """What each term computes, whatever its weight."""
    return {
        "loss.adversarial": tune.choice(["bce", "least-squares", "hinge"]),
        "loss.recon": tune.choice(["l1", "l2"]),
        "loss.gradient_form": tune.choice(["signed", "absolute"]),
        "loss.gradient_margin": tune.choice([0, 1, 2]),
    }


def initialisation() -> Space:
    """How the generator's weights start: PyTorch's default, or pix2pix's normal distribution."""
    return {"generator.init": tune.choice(["default", "normal"])}

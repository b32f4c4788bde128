"""Lambda 1 to 4, the weights of the generator's loss (eq. 5)."""

from __future__ import annotations

from typing import Any

from ray import tune


def loss_weights(perceptual: bool = False) -> dict[str, Any]:
    """Ranges around the paper's hand-tuned values (Table 1).

    Args:
        perceptual: Search lambda 4 too; it needs VGG16 weights.
    """
    space: dict[str, Any] = {
        "loss.lambda_bce": tune.uniform(0.0, 2.0),
        "loss.lambda_recon": tune.uniform(0.5, 4.0),
        "loss.lambda_gradient": tune.uniform(0.0, 3.0),
    }
    if perceptual:
        space["loss.lambda_perceptual"] = tune.uniform(0.0, 2.0)
    return space

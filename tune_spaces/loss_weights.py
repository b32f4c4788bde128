"""Lambda 1 to 4, the weights of the generator's loss (eq. 5)."""

from __future__ import annotations

from typing import Literal

from ray import tune

from tune_spaces.domains import Space, zero_or_log

# The largest weight that the paper gave each term by hand (Table 1).
TABLE_1 = {
    "loss.lambda_bce": 1.0,
    "loss.lambda_recon": 2.0,
    "loss.lambda_gradient": 2.0,
    "loss.lambda_perceptual": 1.0,
}


def loss_weights(perceptual: Literal["vgg16", "cohort"] | None = None) -> Space:
    """Each weight is 0, or log-uniform from a hundredth to four times the paper's largest.

    The paper tuned by hand within a factor of two, on a linear scale. What matters is the ratio of
    the terms, hence the logarithm; below a hundredth a term hardly counts, and 0 says so exactly.
    The bounds reach pix2pix's 100 to 1 of reconstruction to adversarial term. All ranges are ours.

    Reconstruction is never 0, the others are in a fifth of draws: it is the one term of all the
    paper's rows, and the configuration refuses a loss that compares no pairs.

    Args:
        perceptual: Search lambda 4 too: with the features of VGG16, which needs its weights, or
            with those of an encoder that each run trains on the targets of its shards.
    """
    space: Space = {
        field: zero_or_log(paper / 100, paper * 4, 0.0 if field == "loss.lambda_recon" else 0.2)
        for field, paper in TABLE_1.items()
        if perceptual or field != "loss.lambda_perceptual"
    }
    if perceptual:
        space["loss.perceptual_network"] = tune.choice([perceptual])
    return space

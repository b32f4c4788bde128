"""Points of small search spaces, and what is told of them."""

from __future__ import annotations

from ray import tune

from distsynth.sweep.hyperparameters import Hyperparameters, Space
from tune_spaces.domains import zero_or_log
from tune_spaces.loss_weights import loss_weights

WEIGHT = {"loss.lambda_bce": zero_or_log(0.01, 4)}

MIXED = {
    **loss_weights(),
    "optim.lr_generator": tune.loguniform(1e-5, 1e-1),
    "generator.channels": tune.choice([(8, 8), (16, 16, 16), ()]),
    "generator.norm": tune.choice(["batch", "none"]),
    "train.batch_size": tune.randint(4, 65),
    "loss.vgg_weights": tune.choice([None, "vgg.pth"]),
}


def anything(hyperparameters: Hyperparameters) -> None:
    """All hyperparameters make a valid configuration."""


def inside(space: Space, hyperparameters: Hyperparameters) -> bool:
    return list(hyperparameters) == list(space) and all(
        domain.is_valid(hyperparameters[name]) for name, domain in space.items()
    )


QUANTIZED = {
    "qloguniform": (0.1, 1.0, 0.1),
    "qrandint": (1, 10, 2),
    "qlograndint": (2, 8, 2),
    "quniform": (0.0, 3.0, 0.5),
}

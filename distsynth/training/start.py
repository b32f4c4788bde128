"""A run that starts with the weights of another one, for fine-tuning."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from torch import Tensor

from distsynth.inference.predictor import checkpoint_of
from distsynth.runs.checkpoint import check_finite_weights, load_checkpoint
from distsynth.runs.folder import local_file
from distsynth.training.steps import Learner
from sharding.io.errors import DataError

logger = logging.getLogger(__name__)
NAMED = 5
"""Weights that a message names."""


def start_from(path: str, learners: Mapping[str, Learner]) -> None:
    """Give the networks of a run the weights of a checkpoint; averaged ones, if it has them.

    A discriminator that the checkpoint lacks starts with random weights, and the log says so.

    Args:
        path: A checkpoint, or a run's folder for its best one; a path or a URL.
        learners: Name to network.

    Raises:
        DataError: If the checkpoint is bad, or a network of it does not fit; names the weights.
    """
    checkpoint = load_checkpoint(local_file(checkpoint_of(path)))
    for name, learner in learners.items():
        if name not in checkpoint.learners:
            logger.warning("%s holds no %s: it starts with random weights", path, name)
            continue
        weights = checkpoint.weights(name)
        own = learner.raw.state_dict()
        if wrong := list(_misfits(own, weights)):
            more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
            raise DataError(
                path,
                f"the weights of its {name} must fit this run's: {'; '.join(wrong[:NAMED])}{more}",
                f"Give the fields of {name} that the checkpoint was trained with, or leave out "
                "train.start_from",
            )
        check_finite_weights(path, weights, "Take another checkpoint")
        learner.start_with(weights)


def _misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    """What keeps given weights from taking the place of a network's own."""
    for name in [*own, *(name for name in given if name not in own)]:
        here, there = (
            tuple(weights[name].shape) if name in weights else None for weights in (own, given)
        )
        if here != there:
            yield (
                f"{name} has the shape {there}, here {here}"
                if here and there
                else (f"{name} is only {'there' if there is not None else 'here'}")
            )

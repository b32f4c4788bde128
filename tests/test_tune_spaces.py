"""Every point of a search space must be a configuration that can run."""

from __future__ import annotations

import random

import numpy as np
import pytest

from distsynth.config import dotted_fields, with_overrides
from distsynth.presets import preset
from tune_spaces.learning_rates import learning_rates
from tune_spaces.loss_weights import loss_weights

SPACES = {
    "loss_weights": loss_weights(),
    "loss_weights with perceptual": loss_weights(perceptual=True),
    "learning_rates": learning_rates(),
    "both": {**loss_weights(), **learning_rates()},
}


@pytest.mark.parametrize("name", SPACES)
def test_sampled_points_are_valid_and_differ(name: str) -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (Tune's domains draw from the global state)
    space = SPACES[name]
    values = []
    for _ in range(50):
        point = {field: domain.sample() for field, domain in space.items()}
        config = with_overrides(preset("unet-7"), point)
        found = dict(dotted_fields(config))
        assert {field: found[field] for field in point} == point
        values.append(tuple(point.values()))
    assert len(set(values)) == 50

"""How training patches are changed at random."""

from __future__ import annotations

from ray import tune

from tune_spaces.domains import Space, zero_or_log


def augmentation() -> Space:
    """Each change is left out in a half of draws; flips and turns depend on the anatomy."""
    return {
        "augment.flips": tune.choice([(), (0,), (0, 1)]),
        "augment.gamma": zero_or_log(0.02, 0.5, 0.5),
        "augment.contrast": zero_or_log(0.02, 0.5, 0.5),
        "augment.bias": zero_or_log(0.02, 0.5, 0.5),
        "augment.shift": tune.choice([0, 1]),
        "augment.blur": tune.choice([0.0, 0.5, 1.0]),
        "augment.noise": zero_or_log(0.01, 0.3, 0.5),
    }

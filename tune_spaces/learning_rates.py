"""Learning rates of the two networks (section 6.5, Table 1)."""

from __future__ import annotations

from ray import tune

from tune_spaces.domains import Space


def learning_rates() -> Space:
    """A decade beyond the paper's smallest and largest values, on a logarithmic scale."""
    return {
        "optim.lr_generator": tune.loguniform(5e-6, 2e-2),
        "optim.lr_discriminator": tune.loguniform(2e-6, 1e-2),
    }

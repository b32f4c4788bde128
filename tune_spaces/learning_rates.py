"""Learning rates of the two networks (section 6.5, Table 1), or around those of a preset."""

from __future__ import annotations

from collections.abc import Mapping

from ray import tune

from tune_spaces.domains import Space

PAPER = {"optim.lr_generator": (5e-6, 2e-2), "optim.lr_discriminator": (2e-6, 1e-2)}
"""Field -> a decade beyond the paper's smallest and largest values."""
SPAN = 10.0
"""A rate that is given is the middle of the range; its ends are so many times lower and higher."""


def learning_rates(centre: Mapping[str, float] | None = None) -> Space:
    """Both rates on a logarithmic scale.

    Args:
        centre: Dotted field to the rate in the middle of its range (ours). A field that is not
            given has the paper's range.
    """
    given = centre or {}
    around = {field: (rate / SPAN, rate * SPAN) for field, rate in given.items() if field in PAPER}
    return {field: tune.loguniform(*ends) for field, ends in (PAPER | around).items()}

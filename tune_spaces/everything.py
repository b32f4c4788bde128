"""All spaces of the registry in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tune_spaces.architectures import architectures
from tune_spaces.domains import Space
from tune_spaces.learning_rates import learning_rates
from tune_spaces.loss_forms import adversarial_losses, initialisation, loss_forms
from tune_spaces.loss_weights import loss_weights
from tune_spaces.recipes import recipes


def everything(
    perceptual: Literal["vgg16", "cohort"] | None = "cohort",
    centre: Mapping[str, float] | None = None,
) -> Space:
    """Weights and forms of the loss, learning rates, recipes, architectures, how weights start.

    Any draw is a configuration that can be run.

    Args:
        perceptual: Whose features lambda 4 weighs, see `loss_weights`; None does not search it.
        centre: Learning rates in the middle of their ranges, see `learning_rates`.
    """
    return {
        **loss_weights(perceptual),
        **loss_forms(),
        **adversarial_losses(),
        **learning_rates(centre),
        **recipes(),
        **architectures(),
        **initialisation(),
    }

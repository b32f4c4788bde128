"""All spaces of the registry in one."""

from __future__ import annotations

from tune_spaces.architectures import architectures
from tune_spaces.domains import Space
from tune_spaces.learning_rates import learning_rates
from tune_spaces.loss_forms import initialisation, loss_forms
from tune_spaces.loss_weights import loss_weights


def everything(perceptual: bool = False) -> Space:
    """Weights and forms of the loss, learning rates, architectures and how their weights start.

    Args:
        perceptual: Search lambda 4 too; it needs VGG16 weights.
    """
    return {
        **loss_weights(perceptual),
        **loss_forms(),
        **learning_rates(),
        **architectures(),
        **initialisation(),
    }

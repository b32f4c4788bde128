"""The registry of search spaces: each by the name that the command line and YAML files give it.

To add a space, write a function that returns it in a module of its own and list it in SPACES.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial

from tune_spaces import architectures
from tune_spaces.augmentation import augmentation
from tune_spaces.domains import Space
from tune_spaces.everything import everything
from tune_spaces.learning_rates import learning_rates
from tune_spaces.loss_forms import (
    adversarial_losses,
    further_terms,
    initialisation,
    loss_forms,
    overlap,
)
from tune_spaces.loss_weights import loss_weights
from tune_spaces.recipes import recipes

SPACES: dict[str, Callable[..., Space]] = {
    "loss-weights": loss_weights,
    "loss-weights-perceptual": partial(loss_weights, perceptual="cohort"),
    "loss-weights-vgg16": partial(loss_weights, perceptual="vgg16"),
    "loss-forms": loss_forms,
    "adversarial-losses": adversarial_losses,
    "further-terms": further_terms,
    "overlap": overlap,
    "initialisation": initialisation,
    "learning-rates": learning_rates,
    "recipes": recipes,
    "augmentation": augmentation,
    "networks": architectures.networks,
    "conv-stacks": architectures.conv_stacks,
    "unets": architectures.unets,
    "half-resolution": architectures.half_resolution,
    "shuffle-unets": architectures.shuffle_unets,
    "intensity-map": architectures.intensity_map,
    "sharpening": architectures.sharpening,
    "normalisation": architectures.normalisation,
    "architectures": architectures.architectures,
    "everything": everything,
}

CENTRED = ("learning-rates", "everything")
"""Spaces that take the rates in the middle of their ranges."""


def one_space(name: str, centre: Mapping[str, float] | None = None) -> Space:
    """The space of this name.

    Args:
        name: A key of SPACES.
        centre: Learning rates in the middle of their ranges; None takes the paper's ranges.

    Raises:
        ValueError: If there is none; suggests the nearest and lists all.
    """
    if name in CENTRED and centre:
        return partial(SPACES[name], centre=centre)()
    if name in SPACES:
        return SPACES[name]()
    near = difflib.get_close_matches(name.lower().replace("_", "-"), SPACES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{name} is not a search space{hint} ({known_spaces()})")


def known_spaces() -> str:
    """What can be named, for messages."""
    return f"spaces: {', '.join(SPACES)}; or a file that ends in .yaml"

"""Spaces by name, as the command line and YAML files ask for them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial

from tune_spaces import architectures
from tune_spaces.domains import Space
from tune_spaces.learning_rates import learning_rates
from tune_spaces.loss_forms import initialisation, loss_forms
from tune_spaces.loss_weights import loss_weights
from tune_spaces.whole import whole

SPACES: dict[str, Callable[[], Space]] = {
    "loss-weights": loss_weights,
    "loss-weights-perceptual": partial(loss_weights, perceptual=True),
    "loss-forms": loss_forms,
    "initialisation": initialisation,
    "learning-rates": learning_rates,
    "networks": architectures.networks,
    "conv-stacks": architectures.conv_stacks,
    "unets": architectures.unets,
    "sharpening": architectures.sharpening,
    "normalisation": architectures.normalisation,
    "architectures": architectures.architectures,
    "whole": whole,
}


def named_space(names_or_paths: Sequence[str]) -> Space:
    """Merge spaces; where two speak of one field, the later wins.

    Args:
        names_or_paths: Keys of SPACES, and paths of YAML files (`.yaml`, `.yml`).

    Raises:
        ValueError: If there is no such space, with a suggestion, or a file is at fault.
    """
    # Here, because a file may name spaces: plain imports this module.
    from tune_spaces.plain import read_space

    if not names_or_paths:
        raise ValueError(f"a search needs at least one space ({_known()})")
    space: Space = {}
    for name in names_or_paths:
        is_file = name.lower().endswith((".yaml", ".yml"))
        space.update(read_space(name) if is_file else one_space(name))
    return space


def one_space(name: str) -> Space:
    """The space of this name.

    Raises:
        ValueError: If there is none; suggests the nearest and lists all.
    """
    if name in SPACES:
        return SPACES[name]()
    near = difflib.get_close_matches(name.lower().replace("_", "-"), SPACES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{name} is not a search space{hint} ({_known()})")


def _known() -> str:
    return f"spaces: {', '.join(SPACES)}; or a file that ends in .yaml"

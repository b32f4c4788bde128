"""Sampled hyperparameters -> RunConfig; sampling them from a space, at random or as a grid.

The hyperparameters of a trial are a dict of dotted fields to plain values, drawn from the space.
Some fields stand for several: `generator` and `discriminator` name a whole network, `adversarial` a
loss with what it asks of the discriminator (distsynth.presets.GENERATORS, DISCRIMINATORS,
ADVERSARIAL), on which dotted fields are then set; `data.shards` brings the patch of the shards that
it names.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from ray.tune.search.sample import Integer

from distsynth.config import RunConfig, dotted_fields, with_overrides
from distsynth.data.resolve import fields_of
from distsynth.errors import ConfigError
from distsynth.presets import ADVERSARIAL, DISCRIMINATORS, GENERATORS
from sharding.io.storage import Folder
from sharding.shards.manifest import Manifest, read_manifest

Hyperparameters = dict[str, Any]
"""One trial's values: dotted field, or a name of NAMED -> plain value."""
Space = Mapping[str, Any]
"""The same keys -> Ray Tune domain."""
_NETWORKS = {"generator": GENERATORS, "discriminator": DISCRIMINATORS}
NAMED = {
    **{
        section: {name: dict(dotted_fields(found, f"{section}.")) for name, found in known.items()}
        for section, known in _NETWORKS.items()
    },
    "adversarial": ADVERSARIAL,
}
"""Field that stands for several -> the names that it takes -> dotted fields to values."""
MUTABLE = ("loss.lambda_", "optim.lr_")
"""Prefixes of the fields that population based training may change in the middle of a run."""


def configure(
    base: RunConfig, hyperparameters: Mapping[str, Any], keep_discriminator: bool = False
) -> RunConfig:
    """The run that sampled hyperparameters stand for.

    Without a discriminator lambda 1 and the weight of feature matching are zero, and with a lambda
    1 of zero there is no discriminator: its training would mostly have no effect on the generator.

    Args:
        base: What the hyperparameters change.
        hyperparameters: Those of one trial.
        keep_discriminator: Keep a discriminator whose weight is zero: the weight may grow later.

    Raises:
        ConfigError: If a field or network does not exist, or the configuration is not valid.
    """
    overrides: Hyperparameters = {}
    for field, known in NAMED.items():
        if field in hyperparameters:
            name = hyperparameters[field]
            if name not in known:
                raise ConfigError(f"{field} must be one of {', '.join(known)}, got {name}")
            overrides |= known[name]
    overrides |= {name: value for name, value in hyperparameters.items() if name not in NAMED}
    if "data.shards" in hyperparameters:
        overrides |= fields_of(manifest_of(str(hyperparameters["data.shards"])))
    family = overrides.get("discriminator.family", base.discriminator.family)
    weight = overrides.get("loss.lambda_bce", base.loss.lambda_bce)
    if family == "none" or (weight == 0 and not keep_discriminator):
        # Without a discriminator its other fields say nothing.
        overrides = {
            name: value
            for name, value in overrides.items()
            if not name.startswith("discriminator.")
        }
        overrides |= {"discriminator.family": "none"}
        overrides |= {f"loss.{name}": 0.0 for name in base.loss.discriminated}
    return with_overrides(base, overrides)


@lru_cache(maxsize=32)
def manifest_of(shards: str) -> Manifest:
    """The manifest of a shard set; read once, it does not change under a sweep."""
    return read_manifest(Folder(shards))


def draw(space: Space, rng: np.random.Generator) -> Hyperparameters:
    """Hyperparameters at random."""
    return {name: plain(domain.sample(random_state=rng)) for name, domain in space.items()}


def draw_candidates(
    space: Space, base: RunConfig, count: int, seed: int, keep_discriminator: bool = False
) -> tuple[list[Hyperparameters], list[str]]:
    """Several sets of hyperparameters at random, each of which makes a valid configuration.

    A set whose values do not go together (all pair losses at weight zero, say) is drawn again.

    Returns:
        The sets, and why others were refused.
    """
    rng = np.random.default_rng(seed)
    candidates: list[Hyperparameters] = []
    refused: list[str] = []
    while len(candidates) < count:
        hyperparameters = draw(space, rng)
        reason = invalid(base, hyperparameters, keep_discriminator)
        if reason is None:
            candidates.append(hyperparameters)
        else:
            refused.append(reason)
    return candidates, refused


def grid_candidates(space: Space, base: RunConfig) -> list[Hyperparameters]:
    """Every combination in a space of choices, the last field changing fastest.

    Raises:
        ConfigError: If a field has infinitely many values, or a combination is invalid.
    """
    options = {}
    for name, domain in space.items():
        if not hasattr(domain, "categories"):
            raise ConfigError(
                f"{name} must be a choice for a grid search, got {domain.domain_str}: list its "
                "values, or search at random or with optuna"
            )
        options[name] = list(domain.categories)
    candidates = [
        {name: plain(value) for name, value in zip(options, values, strict=True)}
        for values in itertools.product(*options.values())
    ]
    for hyperparameters in candidates:
        if reason := invalid(base, hyperparameters):
            raise ConfigError(f"the grid contains {hyperparameters}, which cannot be run: {reason}")
    return candidates


def combinations(space: Space) -> float:
    """How many sets of hyperparameters a space of choices holds; infinite with a range."""
    sizes = [len(getattr(domain, "categories", ())) or math.inf for domain in space.values()]
    return math.prod(sizes)


def invalid(
    base: RunConfig, hyperparameters: Mapping[str, Any], keep_discriminator: bool = False
) -> str | None:
    """Why hyperparameters make no valid configuration; None if they do."""
    try:
        configure(base, hyperparameters, keep_discriminator)
    except ConfigError as error:
        return str(error)
    return None


def hyperparameters_of(config: RunConfig, hyperparameters: Mapping[str, Any]) -> Hyperparameters:
    """The values of a configuration at these fields; networks keep their names."""
    values = dict(dotted_fields(config))
    return {name: values.get(name, value) for name, value in hyperparameters.items()}


def mutations(space: Space) -> Hyperparameters:
    """The part of a space that population based training may change in the middle of a run.

    Raises:
        ConfigError: If there is none.
    """
    found = {name: domain for name, domain in space.items() if name.startswith(MUTABLE)}
    if not found:
        raise ConfigError(
            "pbt needs a loss weight or a learning rate in the space: architectures cannot change "
            "in the middle of a run"
        )
    return found


def bounded(space: Space, hyperparameters: Mapping[str, Any]) -> Hyperparameters:
    """The hyperparameters with scaled values brought back into their domains."""
    inside = dict(hyperparameters)
    for name, domain in mutations(space).items():
        if hasattr(domain, "upper"):
            sampler = domain.get_sampler()
            step = getattr(sampler, "q", None)
            # Integers stop before the end unless they have a step.
            upper = domain.upper - (isinstance(domain, Integer) and step is None)
            value = min(max(hyperparameters[name], domain.lower), upper)
            if step is not None:
                low, high = math.ceil(domain.lower / step), math.floor(domain.upper / step)
                value = min(max(round(value / step), low), high) * step
            inside[name] = plain(domain.cast(value))
    return inside


def plain(value: Any) -> Any:
    """A sampled value as plain Python: numpy's scalars as numbers, lists as tuples."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(plain(part) for part in value)
    return value

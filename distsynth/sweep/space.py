"""What a space must be before it is searched, and which presets lie in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.search.sample import Integer

from distsynth.config import RunConfig, dotted_fields, field_names, with_overrides
from distsynth.errors import ConfigError
from distsynth.presets import GENERATORS, OURS, PRESETS
from distsynth.sweep.hyperparameters import (
    NAMED,
    Hyperparameters,
    Space,
    configure,
    draw,
    invalid,
    manifest_of,
    plain,
)

FIXED = {
    "train.objective": "trials are compared by it; give --objective",
    "train.seam_penalty": "trials are compared by it; give --seam-penalty",
    "train.device": "--gpus decides it",
    "train.keep_epochs": "it changes no number",
    "data.patch_size": "the shards decide it; search data.shards",
    "data.alignment": "the shards decide it; search data.shards",
    "data.neighbours": "the shards decide it; search data.shards",
    "data.contrasts": "the shards decide it; search data.shards",
    "train.start_from": "all trials start alike; give --base.train.start-from",
    "loss.vgg_weights": "it is a file and no value to compare",
    "tracking.": "it changes no number",
}
"""Prefixes of the fields that a space may not hold, and the reasons."""
COMPARED = ("generator.", "discriminator.", "loss.", "optim.")
"""Prefixes of the fields that define a preset."""
TRIES = 200
"""Sets of hyperparameters drawn to check a space."""


def check_grid(space: Space, search: str) -> None:
    """Refuse a grid in a search that draws values: not all of them would be tried.

    Raises:
        ConfigError: Names the field and the remedy.
    """
    for name, domain in space.items():
        grid = isinstance(domain, Mapping) or (hasattr(domain, "is_grid") and domain.is_grid())
        if grid and search != "grid":
            raise ConfigError(
                f"{name} is a grid, of which a {search} search would draw some values only: give "
                "--search grid, where every field has listed values, or make it a choice"
            )


def check_space(space: Space, base: RunConfig, seed: int = 0) -> None:
    """Refuse a space that would give errors in the middle of a sweep.

    Every field must exist and be free to search, every option of a choice and both ends of a range
    must make a valid configuration together with some values of the other fields, and most sets
    drawn at random must.

    Raises:
        ConfigError: Names the field, the value and the rule.
    """
    if not space:
        raise ConfigError("the space is empty: name one or more spaces")
    known = set(field_names())
    rng = np.random.default_rng(seed)
    for name in space:
        if name.startswith(tuple(FIXED)):
            reason = next(why for start, why in FIXED.items() if name.startswith(start))
            raise ConfigError(f"{name} cannot be searched: {reason}")
        if name not in known and name not in NAMED:
            # Says which field is nearest.
            with_overrides(base, {name: draw({name: space[name]}, rng)[name]})
    reasons: Counter[str] = Counter()
    seen: dict[str, set[str]] = {name: set() for name in space}
    for _ in range(TRIES):
        hyperparameters = draw(space, rng)
        reason = invalid(base, hyperparameters)
        if reason:
            reasons[reason] += 1
            continue
        for name, value in hyperparameters.items():
            seen[name].add(repr(value))
    impossible: list[tuple[str, Any, str]] = []
    for name, domain in space.items():
        for option in _extremes(domain):
            if repr(plain(option)) not in seen[name] and not _possible(space, base, name, option):
                hyperparameters = draw(space, rng) | {name: plain(option)}
                reason = invalid(base, hyperparameters) or "it never goes with the other fields"
                impossible.append((name, option, reason))
    if impossible:
        # A field that breaks a rule of its own, rather than one that suffers by it.
        own = (entry for entry in impossible if entry[2].startswith(entry[0]))
        name, option, reason = next(own, impossible[0])
        raise ConfigError(f"{name}: {option} makes no configuration that runs: {reason}")
    if sum(reasons.values()) > TRIES / 2:
        reason, count = reasons.most_common(1)[0]
        raise ConfigError(
            f"{sum(reasons.values())} of {TRIES} candidates drawn from the space make no valid "
            "configuration; "
            f"most often ({count}): {reason}"
        )


def _extremes(domain: Any) -> list[Any]:
    """The options of a choice, or both ends of a range."""
    if hasattr(domain, "categories"):
        return list(domain.categories)
    if not hasattr(domain, "upper"):
        return []
    # Below `low` a weight that may be 0 stands for 0.
    low = getattr(domain, "low", domain.lower)
    step = getattr(domain.get_sampler(), "q", None)
    # Integers stop before the end unless they have a step.
    high = domain.upper - (isinstance(domain, Integer) and step is None)
    return [domain.cast(low), domain.cast(high)]


def _possible(space: Space, base: RunConfig, name: str, option: Any) -> bool:
    rng = np.random.default_rng(1)
    candidates = ({**draw(space, rng), name: plain(option)} for _ in range(TRIES))
    return any(invalid(base, hyperparameters) is None for hyperparameters in candidates)


def presets_in(space: Space, base: RunConfig) -> dict[str, Hyperparameters]:
    """The presets of Table 1 that lie in the space, as hyperparameters.

    A preset lies in it if the space can give exactly its networks, loss and optimizer.
    """
    found = {}
    for name, config in PRESETS.items():
        if not config.adversarial or name in OURS:
            continue
        wanted = dict(dotted_fields(config))
        # Which network the perceptual term has says nothing where that has no weight.
        idle = () if config.loss.lambda_perceptual else ("loss.perceptual_network",)
        hyperparameters: Hyperparameters = {}
        for field, domain in space.items():
            if field in NAMED:
                names = [
                    key
                    for key, fields in NAMED[field].items()
                    if all(wanted.get(name) == part for name, part in fields.items())
                ]
                # A sharpened generator is the plain one with a field on top.
                names = names or _unsharpened(config, field)
                value = next((key for key in names if domain.is_valid(key)), None)
            elif field in idle:
                value = next(iter(getattr(domain, "categories", [])), None)
            elif field.startswith(COMPARED):
                value = wanted.get(field)
            else:
                value = dict(dotted_fields(base)).get(field)
            if value is None or not domain.is_valid(value):
                break
            hyperparameters[field] = value
        else:
            if invalid(base, hyperparameters) is None:
                made = dict(dotted_fields(configure(base, hyperparameters)))
                compared = [key for key in made if key.startswith(COMPARED) and key not in idle]
                if all(made[key] == wanted.get(key) for key in compared):
                    found[name] = hyperparameters
    return found


def _unsharpened(config: RunConfig, field: str) -> list[str]:
    if field != "generator":
        return []
    plainer = with_overrides(config, {"generator.sharpen": "none"}).generator
    return [key for key, network in GENERATORS.items() if network == plainer]


def check_shards(shards: Sequence[str]) -> None:
    """Shard sets of one space must be cut from the same specimens, split alike.

    Raises:
        ConfigError: If not: trials would be compared on different data, or see test specimens.
    """
    first, *others = shards
    rows = _specimens(first)
    for other in others:
        if _specimens(other) != rows:
            raise ConfigError(
                f"data.shards: {other} must hold the specimens and splits of {first}: shard the "
                "same cohort with the same split"
            )


def _specimens(shards: str) -> list[tuple[str, ...]]:
    return [(row.name, row.split, *row.scans_sha256) for row in manifest_of(shards).specimens]

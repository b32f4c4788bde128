"""A point of a search space -> RunConfig; drawing points and checking that they can be run.

A point is a dict of dotted fields to plain values. Two kinds of field stand for several:
`generator` and `discriminator` name a whole network (distsynth.presets.GENERATORS,
DISCRIMINATORS), on which dotted fields are then set; `data.shards` brings the patch size of the
shards that it names.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from ray.tune.search.sample import Integer

from distsynth.config import RunConfig, dotted_fields, field_names, with_overrides
from distsynth.errors import ConfigError
from distsynth.presets import DISCRIMINATORS, GENERATORS, PRESETS
from sharding.io.storage import Folder
from sharding.shards.manifest import Manifest, read_manifest

Point = dict[str, Any]
Space = Mapping[str, Any]
NETWORKS = {"generator": GENERATORS, "discriminator": DISCRIMINATORS}
MUTABLE = ("loss.lambda_", "optim.lr_")
"""Starts of the fields that population based training may change in the middle of a run."""
FIXED = {
    "train.objective": "trials are compared by it; give --objective",
    "train.seam_penalty": "trials are compared by it; give --seam-penalty",
    "train.device": "--gpus decides it",
    "train.keep_epochs": "it changes no number",
    "data.patch_size": "the shards decide it; search data.shards",
    "data.neighbours": "the shards decide it; search data.shards",
    "loss.vgg_weights": "it is a file and no value to compare",
    "tracking.": "it changes no number",
}
"""Starts of the fields that a space may not hold, and why."""
COMPARED = ("generator.", "discriminator.", "loss.", "optim.")
"""Starts of the fields that make a preset what it is."""
TRIES = 200
"""Points drawn to check a space."""


def configure(
    base: RunConfig, point: Mapping[str, Any], keep_discriminator: bool = False
) -> RunConfig:
    """The run that a point stands for.

    Without a discriminator lambda 1 is zero, and with a lambda 1 of zero there is no
    discriminator: it would be trained in vain, for the generator would not feel it.

    Args:
        base: What the point changes.
        point: See the module.
        keep_discriminator: Keep a discriminator whose weight is zero: it may get one on the way.

    Raises:
        ConfigError: If the point names no field or network, or makes no valid configuration.
    """
    overrides: Point = {}
    for section, networks in NETWORKS.items():
        if section in point:
            name = point[section]
            if name not in networks:
                raise ConfigError(f"{section} must be one of {', '.join(networks)}, got {name}")
            overrides |= dict(dotted_fields(networks[name], f"{section}."))
    overrides |= {name: value for name, value in point.items() if name not in NETWORKS}
    if "data.shards" in point:
        cut = manifest_of(str(point["data.shards"])).config
        overrides |= {"data.patch_size": cut.patch_size, "data.neighbours": cut.neighbours}
    family = overrides.get("discriminator.family", base.discriminator.family)
    weight = overrides.get("loss.lambda_bce", base.loss.lambda_bce)
    if family == "none" or (weight == 0 and not keep_discriminator):
        # Without a discriminator its other fields say nothing.
        overrides = {
            name: value
            for name, value in overrides.items()
            if not name.startswith("discriminator.")
        }
        overrides |= {"discriminator.family": "none", "loss.lambda_bce": 0.0}
    return with_overrides(base, overrides)


@lru_cache(maxsize=32)
def manifest_of(shards: str) -> Manifest:
    """The manifest of a shard set; read once, it does not change under a sweep."""
    return read_manifest(Folder(shards))


def draw(space: Space, rng: np.random.Generator) -> Point:
    """One point at random."""
    return {name: plain(domain.sample(random_state=rng)) for name, domain in space.items()}


def draw_points(
    space: Space, base: RunConfig, count: int, seed: int, keep_discriminator: bool = False
) -> tuple[list[Point], list[str]]:
    """Points at random, each of which makes a valid configuration.

    A point whose parts do not go together (all pair losses at weight zero, say) is drawn anew.

    Returns:
        The points, and why others were refused.
    """
    rng = np.random.default_rng(seed)
    points: list[Point] = []
    refused: list[str] = []
    while len(points) < count:
        point = draw(space, rng)
        reason = invalid(base, point, keep_discriminator)
        if reason is None:
            points.append(point)
        else:
            refused.append(reason)
    return points, refused


def grid_points(space: Space, base: RunConfig) -> list[Point]:
    """Every point of a space of choices, the last field changing fastest.

    Raises:
        ConfigError: If a field has infinitely many values, or a point is invalid.
    """
    options = {}
    for name, domain in space.items():
        if not hasattr(domain, "categories"):
            raise ConfigError(
                f"{name} must be a choice for a grid search, got {domain.domain_str}: list its "
                "values, or search at random or with optuna"
            )
        options[name] = list(domain.categories)
    points = [
        {name: plain(value) for name, value in zip(options, values, strict=True)}
        for values in itertools.product(*options.values())
    ]
    for point in points:
        if reason := invalid(base, point):
            raise ConfigError(f"the grid's point {point} cannot be run: {reason}")
    return points


def invalid(
    base: RunConfig, point: Mapping[str, Any], keep_discriminator: bool = False
) -> str | None:
    """Why a point makes no valid configuration; None if it does."""
    try:
        configure(base, point, keep_discriminator)
    except ConfigError as error:
        return str(error)
    return None


def check_grid(space: Space, search: str) -> None:
    """Refuse a grid where values are drawn: not every one of them would be tried.

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
    must make a valid configuration together with some values of the other fields, and most points
    at random must.

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
        if name not in known and name not in NETWORKS:
            # Says which field is nearest.
            with_overrides(base, {name: draw({name: space[name]}, rng)[name]})
    reasons: Counter[str] = Counter()
    seen: dict[str, set[str]] = {name: set() for name in space}
    for _ in range(TRIES):
        point = draw(space, rng)
        reason = invalid(base, point)
        if reason:
            reasons[reason] += 1
            continue
        for name, value in point.items():
            seen[name].add(repr(value))
    impossible: list[tuple[str, Any, str]] = []
    for name, domain in space.items():
        for option in _extremes(domain):
            if repr(plain(option)) not in seen[name] and not _possible(space, base, name, option):
                point = draw(space, rng) | {name: plain(option)}
                reason = invalid(base, point) or "it never goes with the other fields"
                impossible.append((name, option, reason))
    if impossible:
        # A field that breaks a rule of its own, rather than one that suffers by it.
        own = (entry for entry in impossible if entry[2].startswith(entry[0]))
        name, option, reason = next(own, impossible[0])
        raise ConfigError(f"{name}: {option} makes no configuration that runs: {reason}")
    if sum(reasons.values()) > TRIES / 2:
        reason, count = reasons.most_common(1)[0]
        raise ConfigError(
            f"{sum(reasons.values())} of {TRIES} points of the space make no valid configuration; "
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
    points = ({**draw(space, rng), name: plain(option)} for _ in range(TRIES))
    return any(invalid(base, point) is None for point in points)


def presets_in(space: Space, base: RunConfig) -> dict[str, Point]:
    """The presets of Table 1 that lie in the space, as points.

    A preset lies in it if a point gives just its networks, loss and optimizer.
    """
    found = {}
    for name, config in PRESETS.items():
        if not config.adversarial or name == "small":
            continue
        wanted = dict(dotted_fields(config))
        point: Point = {}
        for field, domain in space.items():
            if field in NETWORKS:
                section = getattr(config, field)
                names = [key for key, network in NETWORKS[field].items() if network == section]
                # A sharpened generator is the plain one with a field on top.
                names = names or _unsharpened(config, field)
                value = next((key for key in names if domain.is_valid(key)), None)
            elif field.startswith(COMPARED):
                value = wanted.get(field)
            else:
                value = dict(dotted_fields(base)).get(field)
            if value is None or not domain.is_valid(value):
                break
            point[field] = value
        else:
            if invalid(base, point) is None:
                made = dict(dotted_fields(configure(base, point)))
                if all(made[key] == wanted.get(key) for key in made if key.startswith(COMPARED)):
                    found[name] = point
    return found


def _unsharpened(config: RunConfig, field: str) -> list[str]:
    if field != "generator":
        return []
    plainer = with_overrides(config, {"generator.sharpen": "none"}).generator
    return [key for key, network in GENERATORS.items() if network == plainer]


def point_of(config: RunConfig, point: Mapping[str, Any]) -> Point:
    """The values that a configuration has at the fields of a point; networks keep their names."""
    values = dict(dotted_fields(config))
    return {name: values.get(name, value) for name, value in point.items()}


def mutations(space: Space) -> Point:
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


def bounded(space: Space, point: Mapping[str, Any]) -> Point:
    """The point with scaled values brought back into their domains."""
    inside = dict(point)
    for name, domain in mutations(space).items():
        if hasattr(domain, "upper"):
            sampler = domain.get_sampler()
            step = getattr(sampler, "q", None)
            # Integers stop before the end unless they have a step.
            upper = domain.upper - (isinstance(domain, Integer) and step is None)
            value = min(max(point[name], domain.lower), upper)
            if step is not None:
                low, high = math.ceil(domain.lower / step), math.floor(domain.upper / step)
                value = min(max(round(value / step), low), high) * step
            inside[name] = plain(domain.cast(value))
    return inside


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


def _specimens(shards: str) -> list[tuple[str, str, str, str]]:
    return [
        (row.name, row.split, row.source_sha256, row.target_sha256)
        for row in manifest_of(shards).specimens
    ]


def plain(value: Any) -> Any:
    """A sampled value as plain Python: numpy's scalars as numbers, lists as tuples."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(plain(part) for part in value)
    return value

"""RunConfig: everything that defines a training run, validated once, to and from JSON.

Every route ends here: the command line, a preset with overrides, sampled hyperparameters, a
checkpoint. The dataclasses hold plain values only, so a configuration is a small JSON file that a
person can read. Networks and losses define their own fields, beside their classes; each
section states its rules.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distsynth.errors import ConfigError
from distsynth.losses.overlap import window_sides
from distsynth.losses.registry import LossConfig
from distsynth.models import (
    DISCRIMINATOR_FAMILIES,
    GENERATOR_FAMILIES,
    AnyDiscriminator,
    AnyGenerator,
    ConvStackConfig,
    NoDiscriminatorConfig,
)
from distsynth.models.discriminator import DiscriminatorConfig
from distsynth.rules import Rule, check_rules
from distsynth.sections import (
    AugmentConfig,
    DataConfig,
    OptimConfig,
    StitchConfig,
    TrackingConfig,
    TrainConfig,
)
from sharding.io.records import STRICT

LONGEST_VALUE = 200
"""Characters of a wrong value that a message shows."""
FAMILIES: Mapping[str, Mapping[str, type[Any]]] = {
    "generator": GENERATOR_FAMILIES,
    "discriminator": DISCRIMINATOR_FAMILIES,
}
"""Sections whose fields depend on their field `family` -> family -> dataclass."""


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    __pydantic_config__ = STRICT

    data: DataConfig = field(default_factory=DataConfig)
    generator: AnyGenerator = field(default_factory=ConvStackConfig)
    discriminator: AnyDiscriminator = field(default_factory=NoDiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    stitch: StitchConfig = field(default_factory=StitchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @cached_property
    def adversarial(self) -> bool:
        """Whether a discriminator is trained."""
        return self.discriminator.family != "none"

    def rules(self) -> Iterable[Rule]:
        """Rules about several sections, under dotted names."""
        for name, weight in self.loss.discriminated.items():
            felt = self.adversarial or weight == 0
            yield Rule(f"loss.{name}", felt, "0 when discriminator.family is none", weight)
        if isinstance(self.discriminator, DiscriminatorConfig):
            yield from self._discriminator_rules(self.discriminator)
        if self.data.alignment is not None:
            rule = f"divisible by data.alignment, {self.data.alignment}"
            aligned = self.stitch.stride % self.data.alignment == 0
            yield Rule("stitch.stride", aligned, rule, self.stitch.stride)
        if self.data.patch_size is not None:
            side, stitch = min(self.data.patch_size), self.stitch
            rule = f"at most the patch's shortest side, {side}"
            yield Rule("stitch.stride", stitch.stride <= side, rule, stitch.stride)
            if self.loss.lambda_overlap > 0:
                yield self._overlap_rule(self.data.patch_size)
            meet = side - 2 * stitch.trim >= stitch.stride
            yield Rule("stitch.trim", meet, "small enough that patches meet", stitch.trim)

    def _overlap_rule(self, patch_size: tuple[int, ...]) -> Rule:
        """The generator takes windows that are shorter than the patch and overlap."""
        multiple = self.generator.multiple(patch_size)
        rule = (
            f"0 for a generator whose sides are divisible by {multiple} on patches of "
            f"{patch_size}: no shorter windows overlap; choose fewer levels or larger patches"
        )
        fits = window_sides(patch_size, multiple) is not None
        return Rule("loss.lambda_overlap", fits, rule, self.loss.lambda_overlap)

    def _discriminator_rules(self, discriminator: DiscriminatorConfig) -> Iterable[Rule]:
        """What its loss asks of a discriminator: a bounded slope, and logits of a patch alone."""
        loss = self.loss
        critic = loss.adversarial == "wasserstein"
        bounded = not critic or loss.penalty != "none" or discriminator.spectral_norm
        rule = (
            "gradient or r1 where loss.adversarial is wasserstein, unless "
            "discriminator.spectral_norm is true"
        )
        yield Rule("loss.penalty", bounded, rule, loss.penalty)
        alone = not (discriminator.mixes_batch and (critic or loss.penalty != "none"))
        rule = (
            "instance or none with a penalty or the wasserstein loss, which look at each patch by "
            "itself"
        )
        yield Rule("discriminator.norm", alone, rule, "batch")


_ADAPTER = TypeAdapter(RunConfig)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested plain values."""
    return _ADAPTER.dump_python(config, mode="json")


def to_json(config: RunConfig) -> str:
    """The configuration as indented JSON."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Build and validate a configuration from nested plain values.

    Raises:
        ConfigError: If a field is unknown or a value breaks a rule; names the dotted path.
    """
    try:
        config = _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise _explained(error) from None
    return validate(config)


def from_json(text: str | bytes, where: object = "") -> RunConfig:
    """Inverse of to_json.

    Args:
        text: What to read.
        where: The file that it was read from, for messages.

    Raises:
        ConfigError: As from_dict does; names the file too.
    """
    try:
        values = json.loads(text, object_pairs_hook=_unique)
        if not isinstance(values, dict):
            raise ConfigError(f"a configuration must be a JSON object, got {type(values).__name__}")
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None
    except RecursionError:
        rule = "a configuration must not be nested this deeply"
        raise ConfigError(f"{where}: {rule}" if where else rule) from None
    except ValueError as error:
        rule = f"a configuration must be valid JSON: {error}"
        raise ConfigError(f"{where}: {rule}" if where else rule) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose fields differ; Python would take the last of those that stand twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ConfigError(f"{name} stands twice; keep one")
        found[name] = value
    return found


def dotted_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for every leaf of the configuration."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from dotted_fields(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value


def field_names(families: Mapping[str, str] | None = None) -> list[str]:
    """Dotted names of the fields that a configuration can have.

    Args:
        families: Section to family, `{"generator": "unet", "discriminator": "none"}`; without it
            the fields of all families are named, each once.
    """
    names: dict[str, None] = {}
    for section, default in vars(RunConfig()).items():
        known = FAMILIES.get(section)
        if known is None:
            owners = [type(default)]
        else:
            owners = [known[families[section]]] if families else list(known.values())
        names |= {f"{section}.{item.name}": None for owner in owners for item in fields(owner)}
    return list(names)


def with_overrides(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """A copy with dotted fields replaced, validated as a whole.

    A `family` other than the present one starts from that family's defaults.

    Args:
        config: What to start from, a preset say.
        overrides: Dotted field name to value, `{"loss.lambda_gradient": 2.0}`.

    Raises:
        ConfigError: If a name is unknown (the nearest is suggested) or belongs to another family,
            or if the result is invalid.
    """
    asked = {s: overrides[f"{s}.family"] for s in FAMILIES if f"{s}.family" in overrides}
    config = with_families(config, asked)
    values = to_dict(config)
    families = {section: values[section]["family"] for section in FAMILIES}
    names = set(field_names(families))
    for name, value in overrides.items():
        if name not in names:
            raise _unknown_field(name, families)
        section, leaf = name.split(".")
        values[section][leaf] = value
    return from_dict(values)


def with_families(config: RunConfig, families: Mapping[str, Any]) -> RunConfig:
    """A copy in which networks of another family have that family's defaults; not validated.

    Args:
        config: What to start from.
        families: Section to family, `{"generator": "unet"}`.

    Raises:
        ConfigError: If there is no such family.
    """
    changed = {}
    for section, family in families.items():
        if family not in FAMILIES[section]:
            raise _unknown_family(section, family)
        if family != getattr(config, section).family:
            changed[section] = FAMILIES[section][family]()
    return replace(config, **changed)


def check_owner(config: RunConfig, name: str) -> None:
    """Refuse a dotted field that another family than the configured one has.

    Raises:
        ConfigError: Names both families.
    """
    families = {section: getattr(config, section).family for section in FAMILIES}
    if name in field_names() and name not in field_names(families):
        raise _unknown_field(name, families)


def overrides_between(before: RunConfig, after: RunConfig) -> dict[str, Any]:
    """The overrides that turn one configuration into the other."""
    old = dict(dotted_fields(before))
    switched = tuple(
        f"{section}."
        for section in FAMILIES
        if getattr(before, section).family != getattr(after, section).family
    )
    return {
        name: value
        for name, value in dotted_fields(after)
        if name.startswith(switched) or old[name] != value
    }


def validate(config: RunConfig) -> RunConfig:
    """Check the rules that types alone cannot state; return the configuration unchanged.

    Raises:
        ConfigError: Names the dotted field, the rule and the value.
    """
    check_rules("", _finite_numbers(config))
    for section, part in vars(config).items():
        if is_dataclass(part):
            check_rules(section, part.rules())  # type: ignore[attr-defined]
    check_rules("", config.rules())
    if config.data.patch_size is not None:
        for part in (config.generator, config.discriminator, config.loss):
            part.check_patch(config.data.patch_size)
    return config


def _finite_numbers(config: RunConfig) -> Iterator[Rule]:
    for name, value in dotted_fields(config):
        if isinstance(value, float):
            yield Rule(name, math.isfinite(value), "a finite number", value)


def _explained(error: ValidationError) -> ConfigError:
    """Pydantic's first complaint, with the value, or the field that was perhaps meant."""
    first = error.errors()[0]
    section, *rest = (str(part) for part in first["loc"]) if first["loc"] else ("",)
    found = first.get("input")
    if section in FAMILIES and not rest:
        family = found.get("family") if isinstance(found, dict) else None
        if first["type"].startswith("union_tag"):
            return _unknown_family(section, family)
    families = {}
    if section in FAMILIES and rest:
        # Pydantic names the family between the section and the field.
        families[section], *rest = rest
    name = ".".join([section, *rest])
    if first["type"] == "unexpected_keyword_argument":
        return _unknown_field(name, families, vars(RunConfig()))
    shown = repr(found)
    shown = shown if len(shown) <= LONGEST_VALUE else f"{shown[:LONGEST_VALUE]}..."
    return ConfigError(f"{name}: {first['msg']}, got {shown}")


def _unknown_family(section: str, family: Any) -> ConfigError:
    known = ", ".join(FAMILIES[section])
    return ConfigError(f"{section}.family: must be one of {known}, got {family!r}")


def _unknown_field(
    name: str, families: Mapping[str, str], sections: Iterable[str] = ()
) -> ConfigError:
    """Says to which family a field belongs, or which field or section was perhaps meant."""
    section, _, leaf = name.partition(".")
    owners = [
        family
        for family, owner in FAMILIES.get(section, {}).items()
        if leaf in (item.name for item in fields(owner))
    ]
    if owners:
        return ConfigError(
            f"{name} is not a field of a {families[section]} {section}, only of "
            f"{', '.join(owners)}; remove it or change {section}.family"
        )
    default = {section: getattr(RunConfig(), section).family for section in FAMILIES}
    known = field_names(default | dict(families))
    near = difflib.get_close_matches(name, [*sections, *known], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return ConfigError(f"{name} is not a field of the configuration{hint}")

"""RunConfig: everything that defines a training run, validated once, to and from JSON.

Every route ends here: the command line, a preset with overrides, sampled parameters of a search
space, a checkpoint. The dataclasses hold plain values only, so a configuration is a small JSON
file that a person can read. Networks and losses define their own fields, beside their classes; each
section states its rules.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from distsynth.errors import ConfigError
from distsynth.losses.registry import LossConfig
from distsynth.models import (
    DISCRIMINATOR_FAMILIES,
    GENERATOR_FAMILIES,
    AnyDiscriminator,
    AnyGenerator,
    ConvStackConfig,
    NoDiscriminatorConfig,
)
from distsynth.rules import Rule, at_least, check_rules
from sharding.io.records import STRICT

FAMILIES: Mapping[str, Mapping[str, type[Any]]] = {
    "generator": GENERATOR_FAMILIES,
    "discriminator": DISCRIMINATOR_FAMILIES,
}
"""Sections whose fields depend on their field `family` -> family -> dataclass."""


@dataclass(frozen=True)
class DataConfig:
    """Which shards to read, and how."""

    __pydantic_config__ = STRICT

    shards: str = "shards"
    """Folder that `distsynth shard` wrote: a path, or a URL such as s3://bucket/shards."""
    patch_size: tuple[int, ...] | None = None
    """Sides of a patch in voxels: two for slices, three for blocks. None takes those of the shards;
    what is given must agree with them."""
    neighbours: int | None = None
    """Slices on each side that a 2D source carries as channels (2.5D). None takes those of the
    shards; what is given must agree with them."""
    workers: int = 0
    """Processes that read batches ahead; 0 reads in the training process. Order and content of
    the batches do not depend on it."""
    shuffle_shards: int = 64
    """Shards whose patches are shuffled together; a larger split goes window by window."""
    cache_gb: float = 32.0
    """Disk space for shards fetched from a remote folder, in GB; the least recently used go."""
    resident: Literal["auto", "never"] = "auto"
    """Read the training patches once and keep them on the device where they take at most half of a
    GPU's free memory, or a quarter of a rank's share of the host's. Changes no number."""

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of a patch in voxels.

        Raises:
            ConfigError: If the shards have not been read yet.
        """
        if self.patch_size is None:
            raise ConfigError("data.patch_size is not known before the shards have been read")
        return self.patch_size

    @property
    def spatial_dims(self) -> int:
        """2 for slices, 3 for blocks; raises ConfigError as `sides` does."""
        return len(self.sides)

    @property
    def channels(self) -> int:
        """Channels of a source: the slice itself and its neighbours.

        Raises:
            ConfigError: If the shards have not been read yet.
        """
        if self.neighbours is None:
            raise ConfigError("data.neighbours is not known before the shards have been read")
        return 1 + 2 * self.neighbours

    def rules(self) -> Iterable[Rule]:
        """Rules of each field; those about the patch hold once it is known."""
        if self.patch_size is not None:
            sides = self.patch_size
            yield Rule("patch_size", len(sides) in (2, 3), "two or three sides", sides)
            yield Rule("patch_size", min(sides) >= 4, "sides of at least 4 voxels", sides)
        if self.neighbours is not None:
            yield at_least("neighbours", self.neighbours, 0)
            flat = self.neighbours == 0 or len(self.patch_size or ()) != 3
            yield Rule("neighbours", flat, "0 for 3D patches", self.neighbours)
        yield at_least("workers", self.workers, 0)
        yield at_least("shuffle_shards", self.shuffle_shards, 1)
        yield Rule("cache_gb", self.cache_gb > 0, "> 0", self.cache_gb)


@dataclass(frozen=True)
class OptimConfig:
    """Adam for both networks (section 6.5)."""

    __pydantic_config__ = STRICT

    lr_generator: float = 1e-3
    lr_discriminator: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rates over the run, to zero at its end unless constant."""
    clip_norm: float = 0.0
    """Largest gradient norm of each network; 0 does not clip."""

    def rules(self) -> Iterable[Rule]:
        """Rules of each field."""
        for name in ("lr_generator", "lr_discriminator"):
            value = getattr(self, name)
            yield Rule(name, value > 0, "> 0", value)
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            yield Rule(name, 0 <= value < 1, "in [0, 1)", value)
        yield at_least("clip_norm", self.clip_norm, 0)


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    __pydantic_config__ = STRICT

    epochs: int = 10
    batch_size: int = 32
    """Patches an optimizer step, over all ranks and micro-batches: the same run on any machine."""
    accumulation: int = 1
    """Micro-batches that a rank's part of a batch is cut into, to save memory."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0
    log_every: int = 20
    """Steps between rows of losses."""
    validate_every: int = 1
    """Epochs between stitched validations; the last epoch is always validated."""
    checkpoint_every: int = 0
    """Steps between checkpoints within an epoch; 0 writes one at the end of each epoch only."""
    keep_epochs: int = 0
    """Checkpoints of the latest epochs that are kept besides the last and the best one."""
    objective: Literal["psnr", "ssim_2d", "ssim_global", "mse"] = "psnr"
    """Stitched validation metric, in the mask, by which the best epoch is chosen."""
    seam_penalty: float = 0.0
    """What a seam index of 2 costs, in units of the objective; 1, no seam, costs nothing."""
    compile: bool = False
    """Compile the networks by torch.compile, where there is a compiler: changes the rounding. It
    takes a minute or more at the start, and on a CPU no step was found to be faster."""
    device: Literal["auto", "cpu"] = "auto"

    def rules(self) -> Iterable[Rule]:
        """Rules of each field, and whole micro-batches."""
        for name in ("epochs", "batch_size", "accumulation", "log_every", "validate_every"):
            yield at_least(name, getattr(self, name), 1)
        for name in ("checkpoint_every", "keep_epochs", "seam_penalty", "seed"):
            yield at_least(name, getattr(self, name), 0)
        whole = self.batch_size % self.accumulation == 0
        yield Rule("accumulation", whole, "a divisor of train.batch_size", self.accumulation)


@dataclass(frozen=True)
class StitchConfig:
    """How patches become a volume (section 5.2, 7.2)."""

    __pydantic_config__ = STRICT

    stride: int = 20
    """Voxels between dense patches."""
    trim: int = 0
    """Voxels cut from each patch side before stitching, never at the volume's own faces (ours)."""
    weights: Literal["uniform", "smooth"] = "uniform"
    """Plain average of overlaps (the paper), or weights that fall towards the patch border."""
    axes: tuple[int, ...] = (2,)
    """Slicing axes of 2D prediction; several are averaged. Ignored in 3D."""
    method: Literal["auto", "windows", "whole"] = "auto"
    """How a volume is predicted. windows: as above. whole: each slice, in 3D the volume, as one.
    auto: whole where it gives the same as windows within float rounding (a stack of convolutions
    or a dense network, without instance norm, trimmed by at least as far as it looks), windows
    elsewhere. There, with a U-Net say, whole is another prediction, without seams."""
    memory_mb: int = 512
    """What the activations of a forward may take when predicting. A patch at a time goes through in
    any case, and a slice that whole cannot cut into tiles without changing it. An array of a whole
    volume that takes more lies in a file beside the prediction while it is made."""

    def rules(self) -> Iterable[Rule]:
        """Rules of each field; see RunConfig for those that depend on the patch."""
        yield at_least("stride", self.stride, 1)
        yield at_least("trim", self.trim, 0)
        yield at_least("memory_mb", self.memory_mb, 1)
        axes = self.axes
        valid = len(axes) > 0 and len(set(axes)) == len(axes) and set(axes) <= {0, 1, 2}
        yield Rule("axes", valid, "distinct axes of 0, 1, 2", axes)


@dataclass(frozen=True)
class TrackingConfig:
    """What leaves the loop, and where to."""

    __pydantic_config__ = STRICT

    mode: Literal["online", "offline", "disabled"] = "offline"
    """W&B mode. Offline writes to the run folder; nothing is uploaded until you say online."""
    project: str = "distsynth"
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    """Of the W&B run; None takes that of the run's folder."""
    samples: int = 4
    """Patches shown each epoch: source, synthetic, target, difference."""

    def rules(self) -> Iterable[Rule]:
        """Rules of each field."""
        yield at_least("samples", self.samples, 0)


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
    stitch: StitchConfig = field(default_factory=StitchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @cached_property
    def adversarial(self) -> bool:
        """Whether a discriminator is trained."""
        return self.discriminator.family != "none"

    def rules(self) -> Iterable[Rule]:
        """Rules about several sections, under dotted names."""
        weight = self.loss.lambda_bce
        felt = self.adversarial or weight == 0
        yield Rule("loss.lambda_bce", felt, "0 when discriminator.family is none", weight)
        if self.data.patch_size is not None:
            side, stitch = min(self.data.patch_size), self.stitch
            rule = f"at most the patch's shortest side, {side}"
            yield Rule("stitch.stride", stitch.stride <= side, rule, stitch.stride)
            meet = side - 2 * stitch.trim >= stitch.stride
            yield Rule("stitch.trim", meet, "small enough that patches meet", stitch.trim)


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


def from_json(text: str) -> RunConfig:
    """Inverse of to_json; raises ConfigError as from_dict does."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"configuration is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError("configuration must be a JSON object")
    return from_dict(values)


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
    return ConfigError(f"{name}: {first['msg']}, got {found!r}")


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

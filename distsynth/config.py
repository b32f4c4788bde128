"""RunConfig: everything that defines a training run, validated once, to and from JSON.

Every route ends here: the command line, a preset with overrides, a sampled point of a search
space, a checkpoint. The dataclasses hold plain values only, so a configuration is a small JSON
file that a person can read.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from distsynth.errors import ConfigError
from sharding.io.records import STRICT, first_complaint


@dataclass(frozen=True)
class DataConfig:
    """Which shards to read, and how."""

    __pydantic_config__ = STRICT

    shards: str = "shards"
    """Folder that `distsynth shard` wrote: a path, or a URL such as s3://bucket/shards."""
    patch_size: tuple[int, ...] = (64, 64)
    """Sides of a patch in voxels: two for slices, three for blocks. Must match the shards."""
    neighbours: int = 0
    """Slices on each side that a 2D source carries as channels (2.5D). Must match the shards."""
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
    def spatial_dims(self) -> int:
        """2 for slices, 3 for blocks."""
        return len(self.patch_size)

    @property
    def channels(self) -> int:
        """Channels of a source: the slice itself and its neighbours."""
        return 1 + 2 * self.neighbours


@dataclass(frozen=True)
class GeneratorConfig:
    """The network that maps source to synthetic.

    `family` names the shape of the network, the other fields its size:

    - conv: a stack of convolutions; `channels` are the hidden widths, one kernel more than that.
    - encoder-decoder: FCN 2; `channels` and `kernels` of the encoder, mirrored by the decoder.
    - dense: DCSRN; `channels` are the stem and the growth of each dense unit.
    - unet: the pix2pix U-Net; `channels` of each stride-2 level, cut to what the patch allows.
    """

    __pydantic_config__ = STRICT

    family: Literal["conv", "encoder-decoder", "dense", "unet"] = "conv"
    channels: tuple[int, ...] = (8, 20, 24, 4)
    kernels: tuple[int, ...] = (3, 3, 3, 3, 3)
    """Odd kernel sizes; a single value serves every layer. Empty for a unet: always 4."""
    norm: Literal["batch", "instance", "none"] = "batch"
    norm_first: bool = True
    """Whether a conv stack normalises its first layer too (DCGAN 1 does not)."""
    output: Literal["linear", "tanh", "sigmoid", "relu"] = "linear"
    """Last activation. Standardised targets leave [-1, 1], so tanh cannot reach them (ours)."""
    residual: bool = False
    """Add the source to the output (section 6.3; the paper tried and rejected it)."""
    sharpen: Literal["none", "3x3", "5x5"] = "none"
    """Fixed sharpening kernel on the output (model 6)."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The network that tells target from synthetic; family none trains without one."""

    __pydantic_config__ = STRICT

    family: Literal["none", "conv", "patchgan"] = "none"
    channels: tuple[int, ...] = (8, 20, 24, 4)
    kernels: tuple[int, ...] = (3, 3, 3, 3)
    """Odd kernel sizes of a conv discriminator. Empty for a PatchGAN: always 4."""
    downsample: Literal["stride", "maxpool"] = "stride"
    """How a conv discriminator halves its maps after each layer."""
    norm: Literal["batch", "instance", "none"] = "batch"
    conditional: bool = False
    """Judge the pair (source, image) as pix2pix does, not the image alone."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the generator's loss (eq. 5)."""

    __pydantic_config__ = STRICT

    lambda_bce: float = 0.0
    """Adversarial term (eq. 2)."""
    lambda_recon: float = 1.0
    """Reconstruction term (eq. 3)."""
    recon: Literal["l1", "l2"] = "l1"
    """Norm of the reconstruction term: mean absolute or mean squared difference."""
    lambda_gradient: float = 0.0
    """Gradient difference term (eq. 4)."""
    lambda_perceptual: float = 0.0
    """VGG16 perceptual term (section 6.4)."""
    vgg_weights: str | None = None
    """File of torchvision's VGG16 weights; none looks in the torch hub cache of this user."""


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


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    __pydantic_config__ = STRICT

    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    stitch: StitchConfig = field(default_factory=StitchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @cached_property
    def adversarial(self) -> bool:
        """Whether a discriminator is trained."""
        return self.discriminator.family != "none"


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
        raise ConfigError(_explain(error)) from None
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


def with_overrides(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """A copy with dotted fields replaced, validated as a whole.

    Args:
        config: What to start from, a preset say.
        overrides: Dotted field name to value, `{"loss.lambda_gradient": 2.0}`.

    Raises:
        ConfigError: If a name is unknown (the nearest is suggested) or the result is invalid.
    """
    known = dict(dotted_fields(config))
    values = to_dict(config)
    for name, value in overrides.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{name} is not a field of the configuration{hint}")
        *parents, leaf = name.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return from_dict(values)


def validate(config: RunConfig) -> RunConfig:
    """Check the rules that types alone cannot state; return the configuration unchanged.

    Raises:
        ConfigError: Names the dotted field, the rule and the value.
    """
    for name, ok, rule, value in _rules(config):
        if not ok:
            raise ConfigError(f"{name} must be {rule}, got {value}")
    return config


def _rules(config: RunConfig) -> Iterator[tuple[str, bool, str, Any]]:
    """Yield (field, holds, rule, value)."""
    data, generator, discriminator = config.data, config.generator, config.discriminator
    loss, optim, train, stitch = config.loss, config.optim, config.train, config.stitch

    def at_least(name: str, value: float, low: float) -> tuple[str, bool, str, Any]:
        return name, value >= low, f">= {low}", value

    for name, value in dotted_fields(config):
        if isinstance(value, float):
            yield name, math.isfinite(value), "a finite number", value

    sides = data.patch_size
    yield "data.patch_size", len(sides) in (2, 3), "two or three sides", sides
    yield "data.patch_size", min(sides, default=0) >= 4, "sides of at least 4 voxels", sides
    yield at_least("data.workers", data.workers, 0)
    yield at_least("data.shuffle_shards", data.shuffle_shards, 1)
    yield "data.cache_gb", data.cache_gb > 0, "> 0", data.cache_gb
    yield at_least("data.neighbours", data.neighbours, 0)
    flat = len(sides) == 2 or data.neighbours == 0
    yield "data.neighbours", flat, "0 for 3D patches", data.neighbours

    for name, network in (("generator", generator), ("discriminator", discriminator)):
        widths, kernels = network.channels, network.kernels
        yield f"{name}.channels", len(widths) > 0 and min(widths) > 0, "positive widths", widths
        odd = all(kernel > 0 and kernel % 2 for kernel in kernels)
        yield f"{name}.kernels", odd, "positive odd sizes", kernels
        layers = _kernel_count(network)
        rule = f"1 or {layers} sizes for these channels" if layers else "empty: they are always 4"
        yield f"{name}.kernels", len(kernels) in {min(layers, 1), layers}, rule, kernels
    yield (
        "generator.channels",
        generator.family != "unet" or len(generator.channels) >= 2,
        "at least two levels for a unet",
        generator.channels,
    )

    for name in ("lambda_bce", "lambda_recon", "lambda_gradient", "lambda_perceptual"):
        yield at_least(f"loss.{name}", getattr(loss, name), 0)
    supervised = loss.lambda_recon + loss.lambda_gradient + loss.lambda_perceptual
    yield "loss", supervised > 0, "more than the adversarial term: the pairs must count", loss
    has_judge = discriminator.family != "none"
    yield (
        "loss.lambda_bce",
        has_judge or loss.lambda_bce == 0,
        "0 when discriminator.family is none",
        loss.lambda_bce,
    )

    for name in ("lr_generator", "lr_discriminator"):
        value = getattr(optim, name)
        yield f"optim.{name}", value > 0, "> 0", value
    for name in ("beta1", "beta2"):
        value = getattr(optim, name)
        yield f"optim.{name}", 0 <= value < 1, "in [0, 1)", value
    yield at_least("optim.clip_norm", optim.clip_norm, 0)

    for name in ("epochs", "batch_size", "accumulation", "log_every", "validate_every"):
        yield at_least(f"train.{name}", getattr(train, name), 1)
    yield at_least("train.checkpoint_every", train.checkpoint_every, 0)
    yield at_least("train.keep_epochs", train.keep_epochs, 0)
    yield at_least("train.seam_penalty", train.seam_penalty, 0)
    yield at_least("train.seed", train.seed, 0)
    whole = train.batch_size % train.accumulation == 0
    yield "train.accumulation", whole, "a divisor of train.batch_size", train.accumulation

    yield at_least("stitch.stride", stitch.stride, 1)
    yield at_least("stitch.trim", stitch.trim, 0)
    yield at_least("stitch.memory_mb", stitch.memory_mb, 1)
    kept = min(sides) - 2 * stitch.trim
    yield "stitch.trim", kept >= stitch.stride, "small enough that patches meet", stitch.trim
    axes = stitch.axes
    valid = len(axes) > 0 and len(set(axes)) == len(axes) and set(axes) <= {0, 1, 2}
    yield "stitch.axes", valid, "distinct axes of 0, 1, 2", axes
    yield at_least("tracking.samples", config.tracking.samples, 0)


def _kernel_count(network: GeneratorConfig | DiscriminatorConfig) -> int:
    """How many kernel sizes the family reads from its configuration."""
    widths = len(network.channels)
    layers = {"encoder-decoder": widths, "dense": 1, "unet": 0, "patchgan": 0, "none": widths}
    if network.family == "conv":
        return widths + 1 if isinstance(network, GeneratorConfig) else widths
    return layers[network.family]


def _explain(error: ValidationError) -> str:
    """Pydantic's first complaint, with the value, or the field that was perhaps meant."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        known = [section.name for section in fields(RunConfig)]
        known += [field_name for field_name, _ in dotted_fields(RunConfig())]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{name} is not a field of the configuration{hint}"
    return f"{first_complaint(error)}, got {first.get('input')!r}"

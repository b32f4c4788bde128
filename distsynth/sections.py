"""The sections of a configuration that no network and no loss owns, and the rules of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from distsynth.errors import ConfigError
from distsynth.rules import Rule, at_least, between
from sharding.io.records import STRICT

LARGEST_SIDE, MOST_NEIGHBOURS, MOST_WORKERS, LARGEST_BATCH = 4096, 128, 256, 1_000_000
MOST_CONTRASTS = 64
MOST_SAMPLES, MOST_UPDATES, LARGEST_SEED = 256, 1000, 2**32 - 2
"""Bounds that keep a slip of the pen from taking the machine; NumPy's seeds end at 2^32 - 1."""
Resolved = Literal["no", "bf16", "fp16"]
"""Precisions that a run can have; no is float32."""
Precision = Literal["auto", Resolved]
"""Precisions that can be asked for."""
RESERVED = "/\\#?%:"
"""Characters that W&B does not take in the name of a project or an entity."""


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
    alignment: int | None = None
    """Patches and windows start at multiples of this many voxels. None takes the shards' own; what
    is given must agree with it."""
    contrasts: int | None = None
    """Contrasts of a source, such as 2 for T1 and T2, each with its slices as channels. None takes
    those of the shards; what is given must agree with them."""
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
        return self._known("patch_size")

    @property
    def spatial_dims(self) -> int:
        """2 for slices, 3 for blocks; raises ConfigError as `sides` does."""
        return len(self.sides)

    @property
    def channels(self) -> int:
        """Channels of a source: of each contrast the slice itself and its neighbours.

        Raises:
            ConfigError: If the shards have not been read yet.
        """
        return (self.contrasts or 1) * self.slices

    @property
    def slices(self) -> int:
        """Slices that each contrast carries, the middle one is predicted; raises as `channels`."""
        return 1 + 2 * self._known("neighbours")

    @property
    def start_multiple(self) -> int:
        """Voxels at whose multiples windows start.

        Raises:
            ConfigError: If the shards have not been read yet.
        """
        return self._known("alignment")

    def _known(self, name: str) -> Any:
        """A field that the shards decide; raises ConfigError until they have been read."""
        value = getattr(self, name)
        if value is None:
            raise ConfigError(f"data.{name} is not known before the shards have been read")
        return value

    def rules(self) -> Iterable[Rule]:
        """Rules of each field; those about the patch hold once it is known."""
        if self.patch_size is not None:
            sides = self.patch_size
            yield Rule("patch_size", len(sides) in (2, 3), "two or three sides", sides)
            yield Rule("patch_size", min(sides) >= 4, "sides of at least 4 voxels", sides)
            rule = f"sides of at most {LARGEST_SIDE} voxels"
            yield Rule("patch_size", max(sides) <= LARGEST_SIDE, rule, sides)
        if self.neighbours is not None:
            yield between("neighbours", self.neighbours, 0, MOST_NEIGHBOURS)
            flat = self.neighbours == 0 or len(self.patch_size or ()) != 3
            yield Rule("neighbours", flat, "0 for 3D patches", self.neighbours)
        if self.contrasts is not None:
            yield between("contrasts", self.contrasts, 1, MOST_CONTRASTS)
        if self.alignment is not None:
            yield between("alignment", self.alignment, 1, LARGEST_SIDE)
            divides = all(side % self.alignment == 0 for side in self.patch_size or ())
            yield Rule("alignment", divides, "a divisor of the patch's sides", self.alignment)
        yield between("workers", self.workers, 0, MOST_WORKERS)
        yield at_least("shuffle_shards", self.shuffle_shards, 1)
        yield Rule("cache_gb", self.cache_gb > 0, "> 0", self.cache_gb)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW for both networks; without weight decay it is the paper's Adam (section 6.5)."""

    __pydantic_config__ = STRICT

    lr_generator: float = 1e-3
    lr_discriminator: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rates over the run, to zero at its end unless constant."""
    warmup_steps: int = 0
    """Steps in which the learning rates grow from zero to what the schedule says."""
    weight_decay: float = 0.0
    """Share of the weights, times the learning rate, by which they shrink in each step."""
    average: float = 0.0
    """Decay of a running average of the generator's weights, such as 0.995; the average is what is
    validated, predicts and is exported. 0 takes the weights as they are."""
    clip_norm: float = 0.0
    """Largest gradient norm of each network; 0 does not clip."""
    discriminator_steps: int = 1
    """Updates of the discriminator, each on a batch of its own, for one update of the generator,
    on the last of these batches. A step is one batch, also where the generator does not learn."""

    def rules(self) -> Iterable[Rule]:
        """Rules of each field."""
        for name in ("lr_generator", "lr_discriminator"):
            value = getattr(self, name)
            yield Rule(name, value > 0, "> 0", value)
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            yield Rule(name, 0 <= value < 1, "in [0, 1)", value)
        yield Rule("average", 0 <= self.average < 1, "in [0, 1)", self.average)
        for name in ("clip_norm", "warmup_steps", "weight_decay"):
            yield at_least(name, getattr(self, name), 0)
        yield between("discriminator_steps", self.discriminator_steps, 1, MOST_UPDATES)


MOST_SHIFT = 8
"""Voxels: more would leave little of the smallest patches."""


@dataclass(frozen=True)
class AugmentConfig:
    """How training patches are changed at random, each epoch otherwise; validation is not."""

    __pydantic_config__ = STRICT

    flips: tuple[int, ...] = ()
    """Axes of a patch that are flipped in half of all cases, in source and target."""
    turns: bool = False
    """Exchange equal sides of a patch in half of all cases; with flips these are quarter turns."""
    shift: int = 0
    """Voxels by which a patch is shifted at most along each side, source and target alike; what
    comes in at the border repeats it. Blocks that are cut at even places are seen at odd ones."""
    gamma: float = 0.0
    """The source's intensities are raised to a power of up to 1 + gamma, or its inverse; it and the
    bias field take what stands for [0, 1] under `percentile`."""
    contrast: float = 0.0
    """The source is multiplied by up to 1 + contrast, or its inverse, and shifted by up to as much,
    in standardised units."""
    bias: float = 0.0
    """Logarithm of the largest factor of a smooth field over the source."""
    blur: float = 0.0
    """Largest share, 0 to 1, of a blurred copy in the source."""
    noise: float = 0.0
    """Largest deviation of the noise that is added to the source, in standardised units."""

    @property
    def used(self) -> bool:
        """Whether anything is changed."""
        return any(vars(self).values())

    def rules(self) -> Iterable[Rule]:
        """Rules of each field."""
        distinct = len(set(self.flips)) == len(self.flips) and set(self.flips) <= {0, 1, 2}
        yield Rule("flips", distinct, "distinct axes of 0, 1, 2, or none", self.flips)
        yield between("shift", self.shift, 0, MOST_SHIFT)
        for name in ("gamma", "contrast", "bias", "blur", "noise"):
            yield between(name, getattr(self, name), 0, 1)


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    __pydantic_config__ = STRICT

    epochs: int = 10
    """Passes through the training patches."""
    minutes: float = 0.0
    """Minutes of training, if they are over before the epochs; 0 for no limit. The time of steps
    counts, not that of validations and checkpoints. Learning rates then follow the clock, and a
    resumed run ends after as much training as one that was not interrupted."""
    patience: int = 0
    """Validations without a new best score after which the run ends early; 0 never does."""
    start_from: str | None = None
    """Checkpoint or run, a path or a URL, whose weights the networks start with; all else starts
    anew. None starts with random weights."""
    batch_size: int = 32
    """Patches an optimizer step, over all ranks and micro-batches. The number of ranks changes a
    run by rounding only: BatchNorm takes its statistics over all of them."""
    accumulation: int = 1
    """Micro-batches that a rank's part of a batch is cut into, to save memory. BatchNorm takes its
    statistics over one of them at a time, all else is as without."""
    precision: Precision = "auto"
    """Precision of the networks; losses, weights and statistics are float32 in each. no is float32.
    auto takes bf16 where the device multiplies natively in it and a probe of the networks, well
    below a second, gains by it, else no; a run records which, and is resumed in it anywhere."""
    seed: int = 0
    log_every: int = 20
    """Steps between rows of losses."""
    validate_every: int = 1
    """Epochs between stitched validations; the last epoch is always validated."""
    validate_share: float = 1.0
    """Share of each validation specimen that validations look at: of its slices, or of its layers
    of blocks, evenly spaced where they hold tissue, at least one and always the same, so that
    epochs are compared on equal terms. Below 1 the last epoch is validated on everything too."""
    checkpoint_every: int = 0
    """Steps between checkpoints within an epoch; 0 writes one at the end of each epoch only."""
    keep_epochs: int = 0
    """Checkpoints of the latest epochs that are kept besides the last and the best one."""
    objective: Literal["psnr", "ssim_2d", "ssim_global", "mse"] = "psnr"
    """Stitched validation metric, in the mask, by which the best epoch is chosen."""
    seam_penalty: float = 0.0
    """What a seam index of 2 costs, in units of the objective; 1, no seam, costs nothing, nor does
    less."""
    compile: bool = False
    """Compile the networks by torch.compile, where there is a compiler: changes the rounding. It
    takes a minute or more in the first step, which train.minutes counts, and on a CPU no step was
    found to be faster."""
    device: Literal["auto", "cpu"] = "auto"

    def rules(self) -> Iterable[Rule]:
        """Rules of each field, and whole micro-batches."""
        for name in ("epochs", "batch_size", "accumulation", "log_every", "validate_every"):
            yield at_least(name, getattr(self, name), 1)
        for name in ("minutes", "patience", "checkpoint_every", "keep_epochs", "seam_penalty"):
            yield at_least(name, getattr(self, name), 0)
        share = self.validate_share
        yield Rule("validate_share", 0 < share <= 1, "> 0 and <= 1", share)
        yield between("seed", self.seed, 0, LARGEST_SEED)
        yield Rule(
            "batch_size", self.batch_size <= LARGEST_BATCH, f"<= {LARGEST_BATCH}", self.batch_size
        )
        divides = self.batch_size % self.accumulation == 0
        yield Rule("accumulation", divides, "a divisor of train.batch_size", self.accumulation)
        scaled = self.precision == "fp16" and self.device == "cpu"
        yield Rule("precision", not scaled, "auto, no or bf16 without a GPU", self.precision)


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
    flips: tuple[int, ...] = ()
    """Axes of the volume to flip: the mean over all their combinations is predicted, so that two
    axes take four times as long. For anatomy that the network knows in either direction."""
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
        flips = self.flips
        valid = len(set(flips)) == len(flips) and set(flips) <= {0, 1, 2}
        yield Rule("flips", valid, "distinct axes of 0, 1, 2, or none", flips)


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
    """Name of the W&B run; None takes that of the run's folder."""
    samples: int = 4
    """Patches shown each epoch: source, synthetic, target, change and error."""

    def rules(self) -> Iterable[Rule]:
        """Rules of each field."""
        yield between("samples", self.samples, 0, MOST_SAMPLES)
        for name in ("project", "entity"):
            value = getattr(self, name)
            plain = value is None or (0 < len(value) <= 128 and not set(value) & set(RESERVED))
            rule = f"1 to 128 characters without any of {' '.join(RESERVED)}, as W&B asks"
            yield Rule(name, plain, rule, repr(value))

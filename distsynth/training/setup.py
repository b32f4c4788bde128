"""What a run is made of, built from its configuration and checked against its shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from accelerate import Accelerator

from distsynth.config import RunConfig
from distsynth.data.foreground import Foreground
from distsynth.data.loader import check_batch
from distsynth.data.resolve import resolved
from distsynth.errors import ConfigError
from distsynth.inference.sliding_window import weight_lines
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.metrics.image import SSIM_WINDOW
from distsynth.models import build_discriminator, build_generator
from distsynth.models.encoder import Encoder
from distsynth.training.compile import compile_networks
from distsynth.training.encoder import new_encoder
from distsynth.training.pace import Pace
from distsynth.training.steps import Learner, make_accelerator
from distsynth.training.validation import validation_axis
from sharding.io.cache import Cache
from sharding.shards.manifest import Manifest
from sharding.shards.patches import patch_axes
from sharding.shards.shard_set import ShardSet


def open_shards(config: RunConfig) -> tuple[RunConfig, ShardSet]:
    """Open the shards, complete the configuration by their manifest and check that all is intact.

    Raises:
        ConfigError: If a field disagrees with the manifest.
        DataError: If a shard is missing or damaged.
    """
    shards = ShardSet(config.data.shards, Cache(gigabytes=config.data.cache_gb))
    config = resolved(config, shards.manifest)
    # Every rank checks, so that all of them stop.
    shards.check_sums("train", "val")
    return config, shards


def check_setup(config: RunConfig, manifest: Manifest, ranks: int, gpu: bool) -> None:
    """Refuse a configuration that these shards and processes cannot train.

    Everything that can be found out without reading a patch is found here, before anything starts.

    Args:
        config: The run.
        manifest: The manifest of its shards.
        ranks: Processes that train together.
        gpu: Whether each has a GPU.

    Raises:
        ConfigError: Names the field, the rule and the value.
    """
    _check_precision(config, gpu)
    check_batch(manifest.patches("train"), config.train.batch_size, ranks, config.data.shards)
    check_accumulation(config, ranks)
    check_trim(config, manifest)
    check_windows([config.train.objective], manifest)


def check_trim(config: RunConfig, manifest: Manifest) -> None:
    """Refuse a trim that leaves gaps between the validation patches of the shards.

    Raises:
        ConfigError: If a voxel would be left uncovered.
    """
    cut = manifest.config
    stitch = replace(config.stitch, stride=cut.stride, weights="uniform")
    for row in manifest.specimens:
        for axis in patch_axes(cut.patch_size, cut.dense_axes) if row.split == "val" else ():
            sides = [side for dim, side in enumerate(row.shape) if dim != axis]
            try:
                weight_lines(sides, cut.patch_size, stitch, cut.alignment)
            except ValueError:
                raise ConfigError(
                    f"stitch.trim={config.stitch.trim} leaves voxels of {row.name} uncovered at "
                    f"the shards' stride of {cut.stride}: trim less, or shard with a smaller stride"
                ) from None


def check_windows(objectives: Iterable[str], manifest: Manifest) -> None:
    """Refuse windowed SSIM as an objective where a validation slice is smaller than its window.

    It would be NaN in every epoch, so that no epoch would be the best.

    Args:
        objectives: Stitched validation metrics.
        manifest: The manifest of the shards.

    Raises:
        ConfigError: Names the specimen and the size of its slices.
    """
    if "ssim_2d" not in objectives:
        return
    axis = validation_axis(manifest.config)
    for row in manifest.specimens:
        sides = [side for dim, side in enumerate(row.shape) if dim != axis]
        if row.split == "val" and min(sides) < SSIM_WINDOW:
            raise ConfigError(
                f"train.objective=ssim_2d needs validation slices of at least {SSIM_WINDOW} voxels "
                f"a side, those of {row.name} have {sides[0]} x {sides[1]}: choose psnr, "
                "ssim_global or mse, or shard along another axis"
            )


def build_accelerator(config: RunConfig) -> Accelerator:
    """The Accelerator of this process, in the precision that has been resolved.

    Raises:
        ConfigError: If the precision needs a GPU and there is none.
    """
    cpu = config.train.device == "cpu"
    _check_precision(config, not cpu and torch.cuda.is_available())
    return make_accelerator(config.train.precision, cpu)


def _check_precision(config: RunConfig, gpu: bool) -> None:
    if config.train.precision == "fp16" and not gpu:
        raise ConfigError("train.precision must be auto, no or bf16 without a GPU, got fp16")


def check_accumulation(config: RunConfig, ranks: int) -> None:
    """Refuse micro-batches of different sizes, which would not weigh every patch alike.

    Raises:
        ConfigError: If the micro-batches do not divide a rank's share of the batch.
    """
    parts = config.train.accumulation
    share, rest = divmod(config.train.batch_size, ranks)
    if not rest and share % parts:
        raise ConfigError(
            f"train.accumulation must be a divisor of the {share} patches that each of {ranks} "
            f"ranks has in a batch, got {parts}"
        )


def build_loss(config: RunConfig, accelerator: Accelerator) -> GeneratorLoss:
    """The generator's loss on the device of this process."""
    return GeneratorLoss(config.loss).to(accelerator.device)


def build_foreground(
    loss: GeneratorLoss, shards: ShardSet, accelerator: Accelerator
) -> Foreground | None:
    """The masks of training and validation specimens, where a loss asks for them."""
    return Foreground(shards, ("train", "val"), accelerator.device) if loss.needs_mask else None


def build_encoder(config: RunConfig, accelerator: Accelerator) -> Encoder | None:
    """The untrained encoder of the perceptual loss; None if another one is used, or none."""
    if not config.loss.needs_encoder:
        return None
    return new_encoder(config.data.spatial_dims).to(accelerator.device)


def build_learners(config: RunConfig, accelerator: Accelerator, pace: Pace) -> dict[str, Learner]:
    """The generator and, for adversarial training, the discriminator.

    Args:
        config: The run.
        accelerator: The accelerator of this process.
        pace: The progress of the run, which learning rates follow.
    """

    def learner(network: torch.nn.Module, rate: float, average: float = 0.0) -> Learner:
        return Learner(network, rate, config.optim, pace, accelerator, average)

    size, channels = config.data.sides, config.data.channels
    generator = build_generator(config.generator, size, channels, config.data.slices)
    learners = {"generator": learner(generator, config.optim.lr_generator, config.optim.average)}
    if config.adversarial:
        discriminator = build_discriminator(config.discriminator, size, channels)
        learners["discriminator"] = learner(discriminator, config.optim.lr_discriminator)
    if config.train.compile:
        compile_networks((each.raw for each in learners.values()), accelerator.device)
    return learners

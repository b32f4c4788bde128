"""Presets: name -> RunConfig. The paper's Tables 1 and 2, what it leaves for later, a small one."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from distsynth.config import OptimConfig, RunConfig, StitchConfig, TrainConfig
from distsynth.errors import ConfigError
from distsynth.losses.registry import LossConfig
from distsynth.models import (
    AnyDiscriminator,
    AnyGenerator,
    ConvDiscriminatorConfig,
    ConvStackConfig,
    DenseConfig,
    EncoderDecoderConfig,
    FeedbackConfig,
    GatedUNetConfig,
    HalfResolutionConfig,
    NoDiscriminatorConfig,
    PatchGANConfig,
    RecursiveConfig,
    ResidualConfig,
    ResidualDenseConfig,
    ResidualUNetConfig,
    UNetConfig,
    build_discriminator,
    build_generator,
    parameter_count,
)
from sharding.shards.config import ShardConfig
from sharding.volumes.config import PreprocessConfig

PAPER_PATCH = (64, 64)
"""Sides of the paper's patches in voxels (section 5.2): the sizes of networks are listed for it."""

# Generators of figure 13: (a), (c), (e), (g). The U-Net and the PatchGAN of pix2pix start as its
# authors have them; the paper states no initialisation (ours). Which of its two kernels sharpened
# model 6 is not stated: the 3x3 one, which the text names first (ours).
A = ConvStackConfig((8, 20, 24, 4), (3,), norm_first=False)
C = ConvStackConfig((16, 64, 128, 196), (7, 5, 5, 3, 1))
E = ConvStackConfig((16, 64, 128, 128, 196), (7, 5, 5, 5, 3, 1))
G = UNetConfig((16, 32, 64, 128, 128, 128), init="normal")
G_SHARPENED = replace(G, sharpen="3x3")

# Discriminators of figure 13: (b), (d), (f) mirror the generators (ours), (h) is pix2pix's.
B = ConvDiscriminatorConfig((8, 20, 24, 4), (3,))
D = ConvDiscriminatorConfig((16, 64, 128, 196), (7, 5, 5, 3))
F = ConvDiscriminatorConfig((16, 64, 128, 128, 196), (7, 5, 5, 5, 3), downsample="maxpool")
H = PatchGANConfig((64, 128, 256, 512), conditional=True, init="normal")

# The CNNs of figure 3; FCN 1 and 2 were trained with L2 (figure 6).
FCN_1 = ConvStackConfig((32, 64, 128), (9, 7, 5, 1))
FCN_2 = EncoderDecoderConfig((32, 64, 64), (5, 3, 3))
DCSRN = DenseConfig((24, 24, 24, 24, 24), (3,))

# The networks that the paper leaves for later (section 8), and the field's zero point; those that
# add the source to their output do so as published. Their sizes are ours, for slices on a CPU.
SRCNN = ConvStackConfig((64, 32), (9, 1, 5), norm="none")
EDSR = ResidualConfig(features=32, blocks=8)
RDN = ResidualDenseConfig(features=24, blocks=4, layers=4, growth=16)
DRCN = RecursiveConfig(features=32, recursions=8, residual=True)
SRFBN = FeedbackConfig(features=16, groups=3, steps=4, residual=True)

# Ours: a residual stack without norm and a light discriminator, quick to train on a laptop.
SMALL = ConvStackConfig((32,) * 6, (3,), norm="none", residual=True)
SMALL_DISCRIMINATOR = ConvDiscriminatorConfig((8, 16, 32), (3,), norm="none")

# Ours: residual blocks on cells of two voxels a side, which see an eighth of a block's voxels.
HALF_RESOLUTION = HalfResolutionConfig()

# Newer U-Nets, of sizes that are ours.
RESIDUAL_UNET = ResidualUNetConfig()
NAFNET = GatedUNetConfig()

# Ours, for blocks; the paper leaves three dimensions for later (section 8).
UNET_3D = UNetConfig((16, 32, 64, 128), init="normal")
RESIDUAL_3D = ResidualConfig(features=16, blocks=4, residual=True)
PATCHGAN_3D = PatchGANConfig((16, 32, 64), conditional=True, norm="instance")

GENERATORS: dict[str, AnyGenerator] = {
    "dcgan-1": A,
    "dcgan-2": C,
    "dcgan-3": E,
    "unet": G,
    "fcn-1": FCN_1,
    "fcn-2": FCN_2,
    "dcsrn": DCSRN,
    "srcnn": SRCNN,
    "edsr": EDSR,
    "rdn": RDN,
    "drcn": DRCN,
    "srfbn": SRFBN,
    "small": SMALL,
    "half-resolution": HALF_RESOLUTION,
    "residual-unet": RESIDUAL_UNET,
    "nafnet": NAFNET,
}
"""Whole generators by the name that a search space gives them."""

DISCRIMINATORS: dict[str, AnyDiscriminator] = {
    "dcgan-1": B,
    "dcgan-2": D,
    "dcgan-3": F,
    "pix2pix": H,
    "small": SMALL_DISCRIMINATOR,
    "none": NoDiscriminatorConfig(),
}
"""Whole discriminators by the name that a search space gives them."""


def _adversarial(loss: str, penalty: str = "none", spectral_norm: bool = False) -> dict[str, Any]:
    """The fields of an adversarial setting; where the slope is bounded there is no BatchNorm."""
    fields: dict[str, Any] = {
        "loss.adversarial": loss,
        "loss.penalty": penalty,
        "discriminator.spectral_norm": spectral_norm,
    }
    if penalty != "none" or spectral_norm:
        fields["discriminator.norm"] = "none"
    return fields


ADVERSARIAL: dict[str, dict[str, Any]] = {
    "bce": _adversarial("bce"),
    "bce-r1": _adversarial("bce", penalty="r1"),
    "least-squares": _adversarial("least-squares"),
    "hinge": _adversarial("hinge"),
    "hinge-spectral": _adversarial("hinge", spectral_norm=True),
    "wasserstein": _adversarial("wasserstein", penalty="gradient"),
    "wasserstein-spectral": _adversarial("wasserstein", spectral_norm=True),
    "kl-spectral": _adversarial("kl", spectral_norm=True),
}
"""Adversarial losses with what each asks of the discriminator, by the name that a search space
gives them: dotted fields that go together."""


def _gan(
    generator: AnyGenerator,
    discriminator: AnyDiscriminator,
    loss: LossConfig,
    lr_generator: float,
    lr_discriminator: float,
) -> RunConfig:
    """A row of Table 1: 30 epochs, batch 32 (section 6.5); U-Nets with pix2pix's beta1 (ours)."""
    beta1 = 0.5 if isinstance(generator, UNetConfig) else 0.9
    return RunConfig(
        generator=generator,
        discriminator=discriminator,
        loss=loss,
        optim=OptimConfig(lr_generator, lr_discriminator, beta1),
        train=TrainConfig(epochs=30, batch_size=32),
    )


def _cnn(generator: AnyGenerator, loss: LossConfig) -> RunConfig:
    """A row of Table 2: 10 epochs, batch 32, learning rate 1e-3, stitched with 4 voxels cut."""
    return RunConfig(
        generator=generator,
        loss=loss,
        optim=OptimConfig(lr_generator=1e-3),
        train=TrainConfig(epochs=10, batch_size=32),
        stitch=StitchConfig(trim=4),
    )


def _half(minutes: float, generator: AnyGenerator, batch_size: int, epochs: int) -> RunConfig:
    """Blocks at half resolution by pairs alone, for a budget in time; the rest is ours, as tried.

    The whole volume goes through the network at once, or in tiles that give the same.
    """
    return RunConfig(
        generator=generator,
        loss=LossConfig(0.0, 1.0, "l1", 0.0, 0.0),
        optim=OptimConfig(
            1.5e-3,
            beta2=0.99,
            schedule="cosine",
            clip_norm=1.0,
            warmup_steps=50,
            weight_decay=1e-4,
            average=0.995,
        ),
        train=TrainConfig(
            epochs=epochs,
            minutes=minutes,
            batch_size=batch_size,
            log_every=50,
            validate_share=0.25,
        ),
        stitch=StitchConfig(stride=32, method="whole"),
    )


# fmt: off
PRESETS: dict[str, RunConfig] = {
    # Figure 13's letters, then the weights of BCE, reconstruction, gradient and perceptual loss,
    # then the learning rates of generator and discriminator.
    "dcgan-1":    _gan(A,           B, LossConfig(1.0, 1.5, "l1", 1.5, 0.0), 5e-5, 2e-5),
    "dcgan-2":    _gan(C,           D, LossConfig(1.0, 1.5, "l1", 0.0, 0.0), 2e-4, 2e-5),
    "dcgan-3":    _gan(E,           F, LossConfig(1.0, 1.5, "l1", 0.0, 0.0), 2e-4, 2e-5),
    "dcgan-4":    _gan(E,           F, LossConfig(1.0, 1.5, "l1", 1.5, 0.0), 2e-4, 2e-5),
    "unet-5":     _gan(G,           D, LossConfig(1.0, 1.5, "l1", 2.0, 0.0), 2e-3, 2e-4),
    "unet-6":     _gan(G_SHARPENED, D, LossConfig(1.0, 1.5, "l1", 2.0, 0.0), 2e-3, 2e-4),
    "unet-7":     _gan(G,           D, LossConfig(1.0, 2.0, "l1", 0.0, 0.0), 2e-3, 2e-4),
    "unet-8":     _gan(G,           D, LossConfig(1.0, 1.5, "l1", 2.0, 0.0), 2e-3, 1e-3),
    "pix2pix-9":  _gan(G,           H, LossConfig(1.0, 1.5, "l1", 0.0, 0.0), 5e-5, 2e-5),
    "pix2pix-10": _gan(G,           H, LossConfig(1.0, 1.5, "l2", 0.0, 0.0), 5e-5, 2e-5),
    "pix2pix-11": _gan(G,           H, LossConfig(1.0, 1.5, "l1", 0.0, 1.0), 5e-5, 2e-5),

    "fcn-1":            _cnn(FCN_1, LossConfig(0.0, 1.0, "l2", 0.0, 0.0)),
    "fcn-2":            _cnn(FCN_2, LossConfig(0.0, 1.0, "l2", 0.0, 0.0)),
    "dcsrn-l1":         _cnn(DCSRN, LossConfig(0.0, 1.0, "l1", 0.0, 0.0)),
    "dcsrn-l2":         _cnn(DCSRN, LossConfig(0.0, 1.0, "l2", 0.0, 0.0)),
    "dcsrn-perceptual": _cnn(DCSRN, LossConfig(0.0, 0.0, "l1", 0.0, 1.0)),

    # Trained as the CNNs of Table 2 are.
    "srcnn":            _cnn(SRCNN, LossConfig(0.0, 1.0, "l1", 0.0, 0.0)),
    "edsr":             _cnn(EDSR,  LossConfig(0.0, 1.0, "l1", 0.0, 0.0)),
    "rdn":              _cnn(RDN,   LossConfig(0.0, 1.0, "l1", 0.0, 0.0)),
    "drcn":             _cnn(DRCN,  LossConfig(0.0, 1.0, "l1", 0.0, 0.0)),
    "srfbn":            _cnn(SRFBN, LossConfig(0.0, 1.0, "l1", 0.0, 0.0)),

    # Blocks, see BLOCKS for their shards: a U-Net by pairs alone, and a GAN whose networks are both
    # of three dimensions, stitched without most of what the faces of its blocks spoil.
    "unet-3d": RunConfig(
        generator=UNET_3D,
        loss=LossConfig(0.0, 1.0, "l1", 0.0, 0.0),
        optim=OptimConfig(1e-3, beta1=0.5, schedule="cosine"),
        train=TrainConfig(epochs=30, batch_size=4),
        stitch=StitchConfig(stride=24),
    ),
    "gan-3d": RunConfig(
        generator=RESIDUAL_3D,
        discriminator=PATCHGAN_3D,
        loss=LossConfig(0.01, 1.0, "l1", 0.0, 0.0),
        optim=OptimConfig(1e-3, 2e-4, schedule="cosine"),
        train=TrainConfig(epochs=30, batch_size=8),
        stitch=StitchConfig(stride=16, trim=8),
    ),

    # Predicted along all three axes: each sees what the other two cannot. Trimmed by as far as the
    # network looks, so that whole slices take the place of windows; patches of 32 meet at 16.
    "small": RunConfig(
        generator=SMALL,
        discriminator=SMALL_DISCRIMINATOR,
        loss=LossConfig(0.01, 1.0, "l1", 0.0, 0.0),
        optim=OptimConfig(2e-3, 2e-4, schedule="cosine"),
        train=TrainConfig(epochs=20, batch_size=32),
        stitch=StitchConfig(stride=16, trim=7, axes=(0, 1, 2)),
    ),

    # The best image for the minutes that there are: on two cores of a CPU, and on a GPU.
    "quick":    _half(2.0,  HALF_RESOLUTION,               batch_size=2,  epochs=100),
    "best":     _half(30.0, HALF_RESOLUTION,               batch_size=2,  epochs=100),
    "best-gpu": _half(30.0, HalfResolutionConfig(128, 10), batch_size=16, epochs=1000),
}
# fmt: on

OURS = (
    *("srcnn", "edsr", "rdn", "drcn", "srfbn", "unet-3d", "gan-3d", "small"),
    *("quick", "best", "best-gpu"),
)
"""Presets that are no rows of the paper's tables."""

EVEN_BLOCKS = ShardConfig(
    patch_size=(32, 32, 32),
    patches_per_specimen=300,
    stride=32,
    alignment=2,
    preprocess=PreprocessConfig(intensities="percentile"),
)
"""Blocks whose cells of two voxels are always the same, and intensities that travel."""
BLOCKS: dict[str, ShardConfig] = {
    "unet-3d": ShardConfig(patch_size=(48, 48, 48), patches_per_specimen=150, stride=24),
    "gan-3d": ShardConfig(patch_size=(32, 32, 32), patches_per_specimen=300, stride=16),
    "quick": EVEN_BLOCKS,
    "best": EVEN_BLOCKS,
    "best-gpu": EVEN_BLOCKS,
}
"""What to cut for the presets of three dimensions; `distsynth shard --for-preset` does so."""


def preset(name: str) -> RunConfig:
    """The configuration of this name.

    Raises:
        ConfigError: If there is none; suggests the nearest and lists all.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"{name} is not a preset{hint} (presets: {', '.join(PRESETS)})")


def describe(name: str) -> dict[str, Any]:
    """A preset in one row, for listings.

    Returns:
        preset, generator, generator_parameters, discriminator, discriminator_parameters, losses,
        lr_generator, lr_discriminator, epochs, minutes; None for what a preset lacks.

    Raises:
        ConfigError: If there is no such preset.
    """
    config = preset(name)
    generator, discriminator = config.generator, config.discriminator
    patch_size = BLOCKS[name].patch_size if name in BLOCKS else PAPER_PATCH
    features = [generator.label]
    if generator.residual:
        features.append("residual")
    if generator.sharpen != "none":
        features.append(f"sharpened {generator.sharpen}")
    row = {
        "preset": name,
        "generator": ", ".join(features),
        "generator_parameters": parameter_count(build_generator(generator, patch_size)),
        "discriminator": None,
        "discriminator_parameters": None,
        "losses": config.loss.label,
        "lr_generator": config.optim.lr_generator,
        "lr_discriminator": None,
        "epochs": config.train.epochs,
        "minutes": config.train.minutes or None,
    }
    if config.adversarial:
        built = build_discriminator(discriminator, patch_size)
        row["discriminator"] = discriminator.label
        row["discriminator_parameters"] = parameter_count(built)
        row["lr_discriminator"] = config.optim.lr_discriminator
    return row

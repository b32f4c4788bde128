"""Names that help lists: help must load neither the networks nor Ray, which define them."""

from __future__ import annotations

PRESET_NAMES = (
    "dcgan-1",
    "dcgan-2",
    "dcgan-3",
    "dcgan-4",
    "unet-5",
    "unet-6",
    "unet-7",
    "unet-8",
    "pix2pix-9",
    "pix2pix-10",
    "pix2pix-11",
    "fcn-1",
    "fcn-2",
    "dcsrn-l1",
    "dcsrn-l2",
    "dcsrn-perceptual",
    "srcnn",
    "edsr",
    "rdn",
    "drcn",
    "srfbn",
    "unet-3d",
    "gan-3d",
    "small",
    "quick",
    "best",
    "best-gpu",
)
"""The keys of distsynth.presets.PRESETS; a test compares them."""

SPACE_NAMES = (
    "loss-weights",
    "loss-weights-perceptual",
    "loss-weights-vgg16",
    "loss-forms",
    "adversarial-losses",
    "further-terms",
    "overlap",
    "initialisation",
    "learning-rates",
    "recipes",
    "augmentation",
    "networks",
    "conv-stacks",
    "unets",
    "half-resolution",
    "shuffle-unets",
    "intensity-map",
    "sharpening",
    "normalisation",
    "architectures",
    "everything",
)
"""The keys of tune_spaces.registry.SPACES; a test compares them."""

USUAL_ROWS = (
    "fcn-1",
    "fcn-2",
    "dcsrn-l1",
    "dcsrn-l2",
    "dcsrn-perceptual",
    "dcgan-1",
    "dcgan-2",
    "dcgan-3",
    "dcgan-4",
    "unet-5",
    "unet-6",
    "unet-7",
    "unet-8",
    "pix2pix-9",
    "pix2pix-10",
    "pix2pix-11",
    "dcgan-2-alone",
    "unet-7-alone",
    "unet-5-no-gradient",
    "unet-6-no-gradient",
    "rfsr",
    "rfsr-pairs",
    "rfsr-intensity",
    "rfsr-boosted",
)
"""The rows that distsynth.reproduction.rows runs when none are named; a test compares them."""

FURTHER_ROWS = (
    "unet-5-absolute",
    "unet-5-margin",
    "unet-6-absolute",
    "unet-6-margin",
    "small",
    "small-alone",
)
"""The other rows of distsynth.reproduction.rows.ROWS; a test compares them."""

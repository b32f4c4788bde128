"""Names of the presets for help, which must not load the networks."""

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

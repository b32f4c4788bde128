"""Networks: the paper's by name, and their parts field by field."""

from __future__ import annotations

from collections.abc import Sequence

from ray import tune

from tune_spaces.domains import Space

GENERATORS = (
    *("dcgan-1", "dcgan-2", "dcgan-3", "unet", "fcn-1", "fcn-2", "dcsrn"),
    *("srcnn", "edsr", "rdn", "drcn", "srfbn", "small", "half-resolution"),
    *("residual-unet", "nafnet"),
)
"""Networks of figures 3 and 13, those that the paper leaves for later, and a small one of ours;
`distsynth.presets` defines them."""

DISCRIMINATORS = ("dcgan-1", "dcgan-2", "dcgan-3", "pix2pix", "small", "none")
"""Discriminators of figure 13, a small one of ours, and none at all."""


def networks(without: bool = False) -> Space:
    """Any generator against any discriminator, each by its name.

    Args:
        without: Offer training without a discriminator too. Such hyperparameters are valid with
            loss.lambda_bce 0 only, so leave it out beside `loss_weights`, where a weight of 0
            trains the same generator.
    """
    discriminators = [name for name in DISCRIMINATORS if without or name != "none"]
    return {
        "generator": tune.choice(list(GENERATORS)),
        "discriminator": tune.choice(discriminators),
    }


def conv_stacks(
    widths: Sequence[int] = (16, 32, 64, 128),
    depths: Sequence[int] = (3, 4, 5, 6, 8),
    kernels: Sequence[int] = (3, 5, 7),
) -> Space:
    """Stacks of convolutions of one width and one kernel size.

    Args:
        widths: Feature maps of every hidden layer.
        depths: Hidden layers; one more convolution makes the output.
        kernels: Odd sizes, one for all layers, so that any depth goes with any size.
    """
    return {
        "generator.family": tune.choice(["conv"]),
        "generator.channels": tune.choice(
            [(width,) * depth for depth in depths for width in widths]
        ),
        "generator.kernels": tune.choice([(kernel,) for kernel in kernels]),
    }


def unets(widths: Sequence[int] = (8, 16, 32, 64), depths: Sequence[int] = (3, 4, 5, 6)) -> Space:
    """U-Nets that double their width at each level up to eightfold, as figure 13 g does.

    Args:
        widths: Feature maps of the first level.
        depths: Levels, at least two; the network drops those that the patch has no room for.
    """
    return {
        "generator.family": tune.choice(["unet"]),
        "generator.channels": tune.choice(
            [
                tuple(width * min(2**level, 8) for level in range(depth))
                for depth in depths
                for width in widths
            ]
        ),
    }


def half_resolution(
    widths: Sequence[int] = (16, 24, 32, 48, 64), depths: Sequence[int] = (3, 5, 8)
) -> Space:
    """Residual networks at half resolution.

    Args:
        widths: Feature maps.
        depths: Residual blocks.
    """
    return {
        "generator.family": tune.choice(["half-resolution"]),
        "generator.features": tune.choice(list(widths)),
        "generator.blocks": tune.choice(list(depths)),
    }


def shuffle_unets(widths: Sequence[int] = (8, 16, 24, 32), depths: Sequence[int] = (2, 3)) -> Space:
    """U-Nets of residual and of gated blocks that double their width at each level.

    Args:
        widths: Feature maps of the first level.
        depths: Levels, at least two.
    """
    return {
        "generator.family": tune.choice(["residual-unet", "gated-unet"]),
        "generator.channels": tune.choice(
            [
                tuple(width * 2**level for level in range(depth))
                for depth in depths
                for width in widths
            ]
        ),
        "generator.encoder_blocks": tune.choice([1, 2, 3]),
        "generator.decoder_blocks": tune.choice([1, 2]),
    }


def intensity_map() -> Space:
    """Whether a fitted curve of intensities comes first, and whether the source is added."""
    return {
        "generator.intensity_map": tune.choice([False, True]),
        "generator.residual": tune.choice([False, True]),
    }


def sharpening() -> Space:
    """The fixed kernel on the generator's output (model 6)."""
    return {"generator.sharpen": tune.choice(["none", "3x3", "5x5"])}


def normalisation() -> Space:
    """The generator's norm."""
    return {"generator.norm": tune.choice(["batch", "instance", "none"])}


def shard_sets(*folders: str) -> Space:
    """The patch size, by the shards to train on.

    Patches are cut when shards are written, so a folder stands for its patch size: whoever turns
    hyperparameters into a configuration reads data.patch_size from the folder's manifest.

    Args:
        folders: Folders that `distsynth shard` wrote from the same split, one a patch size.

    Raises:
        ValueError: If there is no folder, or one twice.
    """
    if not folders or len(set(folders)) < len(folders):
        raise ValueError(f"data.shards must have one or more distinct folders, got {list(folders)}")
    return {"data.shards": tune.choice(list(folders))}


def architectures() -> Space:
    """Any network of the paper, with any sharpening and any norm."""
    return {**networks(), **sharpening(), **normalisation()}

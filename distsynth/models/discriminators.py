"""Discriminators: one logit for a patch, or pix2pix's map of logits (section 6.3, figure 13)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from distsynth.config import DiscriminatorConfig
from distsynth.errors import ConfigError
from distsynth.models.layers import conv, kernel_sizes, max_pool, normalisation


class ConvDiscriminator(nn.Module):
    """Convolutions that halve the sides, a global average, one logit: (b), (d) and (f).

    Each layer halves by stride or by max-pooling; norm on all but the first, LeakyReLU 0.2. The
    paper's figure of these networks is not in its text: the layout is ours.
    """

    def __init__(
        self, config: DiscriminatorConfig, patch_size: Sequence[int], in_channels: int
    ) -> None:
        super().__init__()
        dims = len(patch_size)
        pooled = config.downsample == "maxpool"
        # Instance norm needs more than one voxel, and a stride halves before the norm.
        single = config.norm == "instance" and not pooled
        least = 2 ** len(config.channels) + single
        _check_sides(patch_size, least, f"a conv discriminator of {len(config.channels)} layers")

        widths = pairwise((in_channels, *config.channels))
        kernels = kernel_sizes(config.kernels, len(config.channels))
        layers = []
        for index, ((inputs, outputs), kernel) in enumerate(zip(widths, kernels, strict=True)):
            layers.append(conv(dims, inputs, outputs, kernel, stride=1 if pooled else 2))
            if index > 0:
                layers.append(normalisation(config.norm, dims, outputs))
            layers.append(nn.LeakyReLU(0.2))
            if pooled:
                layers.append(max_pool(dims))
        self.layers = nn.Sequential(*layers)
        self.logit = nn.Linear(config.channels[-1], 1)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> logits (batch, 1)."""
        return self.logit(self.layers(image).flatten(2).mean(dim=2))


class PatchGAN(nn.Module):
    """pix2pix's PatchGAN (h): one logit for each receptive patch.

    Kernel 4 throughout; every width has stride 2 but the last, then a convolution to one channel.
    Norm on all but the first and last layers, where it takes the bias's place.
    """

    def __init__(
        self, config: DiscriminatorConfig, patch_size: Sequence[int], in_channels: int
    ) -> None:
        super().__init__()
        dims, widths = len(patch_size), config.channels
        # Halved by each width but the last; the two layers of stride 1 take a voxel each.
        least = 3 * 2 ** (len(widths) - 1)
        _check_sides(patch_size, least, f"a patchgan of {len(widths)} widths")

        layers = []
        for index, (inputs, outputs) in enumerate(pairwise((in_channels, *widths))):
            stride = 2 if index < len(widths) - 1 else 1
            bias = index == 0 or config.norm == "none"
            layers.append(conv(dims, inputs, outputs, 4, stride, bias=bias))
            if index > 0:
                layers.append(normalisation(config.norm, dims, outputs))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, conv(dims, widths[-1], 1, 4))

    def forward(self, image: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> logits (batch, 1, *map)."""
        return self.layers(image)


def _check_sides(patch_size: Sequence[int], least: int, network: str) -> None:
    if min(patch_size) < least:
        raise ConfigError(
            f"data.patch_size must have sides of at least {least} voxels for {network}, got "
            f"{tuple(patch_size)}; enlarge the patch or shorten discriminator.channels"
        )

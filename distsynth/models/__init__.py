"""Networks by family name: generators map source to synthetic, discriminators image to logits.

All are written once for 2 and 3 spatial dims, which `len(patch_size)` decides. Weights keep
PyTorch's default initialisation; the paper states none (ours).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from distsynth.config import DiscriminatorConfig, GeneratorConfig
from distsynth.errors import ConfigError
from distsynth.models.conv_stack import ConvStack
from distsynth.models.dense import DenseStack
from distsynth.models.discriminators import ConvDiscriminator, PatchGAN
from distsynth.models.encoder_decoder import EncoderDecoder
from distsynth.models.sharpen import Sharpen
from distsynth.models.unet import UNet

GENERATORS: dict[str, Callable[[GeneratorConfig, Sequence[int], int], nn.Module]] = {
    "conv": ConvStack,
    "encoder-decoder": EncoderDecoder,
    "dense": DenseStack,
    "unet": UNet,
}
DISCRIMINATORS: dict[str, Callable[[DiscriminatorConfig, Sequence[int], int], nn.Module]] = {
    "conv": ConvDiscriminator,
    "patchgan": PatchGAN,
}
Network = TypeVar("Network", bound=nn.Module)
OUTPUTS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
}


class Generator(nn.Module):
    """A network of any family, then output activation, residual and sharpening, in this order.

    Attributes:
        multiple: Every side of the source must be divisible by it; 1 where any side serves.
        reach: In eval mode, voxels on each side of a voxel of the source that its output depends
            on; None where it depends on where the source starts and ends, which is so wherever
            resolution is halved and with instance norm.
    """

    def __init__(
        self, config: GeneratorConfig, patch_size: Sequence[int], in_channels: int
    ) -> None:
        super().__init__()
        dims = len(patch_size)
        self.network = GENERATORS[config.family](config, patch_size, in_channels)
        self.output = OUTPUTS[config.output]()
        self.sharpen = nn.Identity() if config.sharpen == "none" else Sharpen(config.sharpen, dims)
        self.residual = config.residual
        self.multiple: int = getattr(self.network, "multiple", 1)
        self.reach: int | None = getattr(self.network, "reach", None)
        if self.reach is not None and isinstance(self.sharpen, Sharpen):
            self.reach += self.sharpen.reach

    def forward(self, source: Tensor) -> Tensor:
        """Predict the target.

        Args:
            source: Shape (batch, in_channels, *spatial), standardised intensity. With several
                channels the centre one is what a residual is added to.

        Returns:
            Synthetic, shape (batch, 1, *spatial).

        Raises:
            ValueError: If a side is not divisible by `multiple`.
        """
        sides = tuple(source.shape[2:])
        if any(side % self.multiple for side in sides):
            raise ValueError(
                f"source must have sides divisible by {self.multiple} for this generator, got "
                f"{sides}; pad or crop it"
            )
        synthetic = self.output(self.network(source))
        if self.residual:
            centre = source.shape[1] // 2
            synthetic = synthetic + source[:, centre : centre + 1]
        return self.sharpen(synthetic)


class Discriminator(nn.Module):
    """A network of any family that judges an image, or the pair (source, image)."""

    def __init__(
        self, config: DiscriminatorConfig, patch_size: Sequence[int], in_channels: int
    ) -> None:
        super().__init__()
        self.conditional = config.conditional
        channels = 1 + in_channels if config.conditional else 1
        self.network = DISCRIMINATORS[config.family](config, patch_size, channels)

    def forward(self, image: Tensor, source: Tensor) -> Tensor:
        """Judge a batch of images.

        Args:
            image: Target or synthetic, shape (batch, 1, *spatial).
            source: Shape (batch, in_channels, *spatial); ignored unless conditional.

        Returns:
            Logits, high for target: (batch, 1), or (batch, 1, *map) for a PatchGAN.
        """
        if self.conditional:
            image = torch.cat((source, image), dim=1)
        return self.network(image)


def build_generator(
    config: GeneratorConfig, patch_size: Sequence[int], in_channels: int = 1
) -> Generator:
    """The configured generator, for 2D or 3D patches.

    Raises:
        ConfigError: If the patch does not fit the network; names the rule and the remedy.
    """
    return _channels_last(Generator(config, patch_size, in_channels), patch_size)


def build_discriminator(
    config: DiscriminatorConfig, patch_size: Sequence[int], in_channels: int = 1
) -> Discriminator:
    """The configured discriminator, for 2D or 3D patches; `in_channels` are the source's.

    Raises:
        ConfigError: If the family is none, or the patch is too small for the network.
    """
    if config.family == "none":
        raise ConfigError("discriminator.family must not be none to build one, got none")
    return _channels_last(Discriminator(config, patch_size, in_channels), patch_size)


def parameter_count(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _channels_last(module: Network, patch_size: Sequence[int]) -> Network:
    """Lay weights out as convolutions are fastest: measured twice as fast on CPU."""
    layout = torch.channels_last if len(patch_size) == 2 else torch.channels_last_3d
    return module.to(memory_format=layout)  # type: ignore[call-overload]

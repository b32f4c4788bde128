"""Networks by family: generators map source to synthetic, discriminators an image to logits.

To add a family, write its configuration and its network in a file of `generators` or
`discriminators` and list the configuration here, in AnyGenerator or AnyDiscriminator; see
docs/extending.md. All are written once
for 2 and 3 spatial dims, which `len(patch_size)` decides. The paper states no initialisation:
`init` chooses PyTorch's, or that of pix2pix's authors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, get_args

import torch
from pydantic import Field
from torch import nn

from distsynth.errors import ConfigError
from distsynth.models.discriminator import Discriminator, DiscriminatorConfig, NoDiscriminatorConfig
from distsynth.models.discriminators.conv_discriminator import ConvDiscriminatorConfig
from distsynth.models.discriminators.patchgan import PatchGANConfig
from distsynth.models.generator import Generator, GeneratorConfig
from distsynth.models.generators.conv_stack import ConvStackConfig
from distsynth.models.generators.dense import DenseConfig
from distsynth.models.generators.encoder_decoder import EncoderDecoderConfig
from distsynth.models.generators.feedback import FeedbackConfig
from distsynth.models.generators.gated_unet import GatedUNetConfig
from distsynth.models.generators.half_resolution import HalfResolutionConfig
from distsynth.models.generators.recursive import RecursiveConfig
from distsynth.models.generators.residual import ResidualConfig
from distsynth.models.generators.residual_dense import ResidualDenseConfig
from distsynth.models.generators.residual_unet import ResidualUNetConfig
from distsynth.models.generators.unet import UNetConfig

AnyGenerator = Annotated[
    ConvStackConfig
    | EncoderDecoderConfig
    | DenseConfig
    | UNetConfig
    | ResidualConfig
    | ResidualDenseConfig
    | RecursiveConfig
    | FeedbackConfig
    | HalfResolutionConfig
    | ResidualUNetConfig
    | GatedUNetConfig,
    Field(discriminator="family"),
]
"""The registry of generators: the configuration of each family."""
AnyDiscriminator = Annotated[
    NoDiscriminatorConfig | ConvDiscriminatorConfig | PatchGANConfig,
    Field(discriminator="family"),
]
"""The registry of discriminators: the configuration of each family."""


def _families(registry: Any) -> dict[str, type[Any]]:
    """Family name -> configuration, of a union such as AnyGenerator."""
    union, _ = get_args(registry)
    return {config.family: config for config in get_args(union)}


GENERATOR_FAMILIES: dict[str, type[GeneratorConfig]] = _families(AnyGenerator)
DISCRIMINATOR_FAMILIES: dict[str, type[DiscriminatorConfig | NoDiscriminatorConfig]] = _families(
    AnyDiscriminator
)
Network = TypeVar("Network", bound=nn.Module)


def build_generator(
    config: GeneratorConfig,
    patch_size: Sequence[int],
    in_channels: int = 1,
    slices: int | None = None,
) -> Generator:
    """The configured generator, for 2D or 3D patches; the arguments are those of Generator.

    Raises:
        ConfigError: If the patch does not fit the network; names the rule and the remedy.
    """
    return _channels_last(Generator(config, patch_size, in_channels, slices), patch_size)


def build_discriminator(
    config: DiscriminatorConfig | NoDiscriminatorConfig,
    patch_size: Sequence[int],
    in_channels: int = 1,
) -> Discriminator:
    """The configured discriminator, for 2D or 3D patches; `in_channels` are the source's.

    Raises:
        ConfigError: If the family is none, or the patch is too small for the network.
    """
    if isinstance(config, NoDiscriminatorConfig):
        raise ConfigError("discriminator.family must not be none to build one, got none")
    return _channels_last(Discriminator(config, patch_size, in_channels), patch_size)


def parameter_count(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _channels_last(module: Network, patch_size: Sequence[int]) -> Network:
    """Lay weights out as convolutions are fastest: measured twice as fast on CPU."""
    layout = torch.channels_last if len(patch_size) == 2 else torch.channels_last_3d
    return module.to(memory_format=layout)  # type: ignore[call-overload]

"""What all discriminators share, and the choice of having none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distsynth.errors import ConfigError
from distsynth.models.initialisation import Initialisation, initialise
from distsynth.models.spectral import add_spectral_norm
from distsynth.rules import Rule
from sharding.io.records import STRICT


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(ABC):
    """The network that tells target from synthetic; each family adds its own fields."""

    __pydantic_config__ = STRICT

    family: str
    """Shape of the network; none trains without one, and an unknown name is answered with all that
    there are. Another family starts from its own defaults, and has fields of its own."""
    conditional: bool = False
    """Show the network the pair (source, image) as pix2pix does, not the image alone."""
    init: Initialisation = "default"
    """How weights start: default is PyTorch's, normal is pix2pix's N(0, 0.02)."""
    spectral_norm: bool = False
    """Divide each layer's weights by their largest singular value."""

    @property
    def mixes_batch(self) -> bool:
        """Whether BatchNorm makes the logits of a patch depend on the others of its batch."""
        return getattr(self, "norm", "none") == "batch"

    @property
    @abstractmethod
    def label(self) -> str:
        """The family and its size in a few words, for listings."""

    @abstractmethod
    def rules(self) -> Iterable[Rule]:
        """The rules that the fields obey."""

    @abstractmethod
    def network(self, patch_size: Sequence[int], in_channels: int) -> DiscriminatorNetwork:
        """Build the family's network.

        Args:
            patch_size: Two sides in voxels for slices, three for blocks.
            in_channels: One for the image, and those of the source before it where the
                discriminator is conditional.

        Returns:
            A module that maps (batch, in_channels, *spatial) to logits.

        Raises:
            ConfigError: If the patch does not suit the network.
        """

    @abstractmethod
    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse patches that the network cannot take.

        Raises:
            ConfigError: Names data.patch_size, the rule and the remedy.
        """


@dataclass(frozen=True, kw_only=True)
class NoDiscriminatorConfig:
    """Training without a discriminator, by the pairs alone."""

    __pydantic_config__ = STRICT

    family: Literal["none"] = "none"
    """none trains without a discriminator; an unknown name is answered with all that there are."""

    @property
    def label(self) -> str:
        """The family."""
        return self.family

    def rules(self) -> Iterable[Rule]:
        """The rules that the fields obey: there are none."""
        return ()

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Take any patch."""


class Discriminator(nn.Module):
    """A network of any family that sees an image, or the pair (source, image)."""

    def __init__(
        self, config: DiscriminatorConfig, patch_size: Sequence[int], in_channels: int
    ) -> None:
        super().__init__()
        self.conditional = config.conditional
        channels = 1 + in_channels if config.conditional else 1
        self.network = config.network(patch_size, channels)
        initialise(self.network, config.init)
        if config.spectral_norm:
            add_spectral_norm(self.network)

    def forward(
        self, image: Tensor, source: Tensor, with_features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Tell target from synthetic.

        Args:
            image: Target or synthetic, shape (batch, 1, *spatial).
            source: Shape (batch, in_channels, *spatial); ignored unless conditional.
            with_features: Return the outputs of the activations as well, a tensor a layer.

        Returns:
            Logits, high for target: (batch, 1), or (batch, 1, *map) for a PatchGAN.
        """
        if self.conditional:
            image = torch.cat((source, image), dim=1)
        return self.network.with_features(image) if with_features else self.network(image)


class DiscriminatorNetwork(nn.Module):
    """Layers one after another, and what makes logits of the last one's output.

    Attributes:
        layers: Convolutions, norms and activations; a family may end them with the logits.
    """

    layers: nn.Sequential

    def logits(self, features: Tensor) -> Tensor:
        """What the layers give -> logits; here the same."""
        return features

    def forward(self, image: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> logits."""
        return self.logits(self.layers(image))

    def with_features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(batch, in_channels, *spatial) -> logits, and the output of each activation."""
        found = []
        for layer in self.layers:
            image = layer(image)
            if isinstance(layer, nn.LeakyReLU):
                found.append(image)
        return self.logits(image), found


def check_sides(patch_size: Sequence[int], least: int, network: str) -> None:
    """Refuse patches that are smaller than a discriminator needs.

    Raises:
        ConfigError: Names data.patch_size, the rule and the remedy.
    """
    if min(patch_size) < least:
        raise ConfigError(
            f"data.patch_size must have sides of at least {least} voxels for {network}, got "
            f"{tuple(patch_size)}; enlarge the patch or shorten discriminator.channels"
        )

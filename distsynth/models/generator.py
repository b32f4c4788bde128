"""What all generators share: their configuration's common fields, and what follows the network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distsynth.models.initialisation import Initialisation, initialise
from distsynth.models.intensity_map import IntensityCurve
from distsynth.models.sharpen import Sharpen
from distsynth.rules import Rule
from sharding.io.records import STRICT

OUTPUTS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
}


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(ABC):
    """The network that maps source to synthetic; each family adds its own fields."""

    __pydantic_config__ = STRICT

    family: str
    """Shape of the network; an unknown name is answered with all that there are. Another family
    starts from its own defaults, and has fields of its own."""
    output: Literal["linear", "tanh", "sigmoid", "relu"] = "linear"
    """Last activation. Standardised targets leave [-1, 1], so tanh cannot reach them (ours)."""
    residual: bool = False
    """Add the source to the output (section 6.3; the paper tried and rejected it), of several
    contrasts the first."""
    intensity_map: bool = False
    """Pass the source through a curve first: the mean target intensity for each of the source,
    which a run fits on its training patches before its first step. `residual` then adds the mapped
    source. Of several contrasts it maps the first."""
    init: Initialisation = "default"
    """How weights start: default is PyTorch's, normal is pix2pix's N(0, 0.02)."""
    sharpen: Literal["none", "3x3", "5x5"] = "none"
    """Fixed sharpening kernel on the output (model 6)."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The family and its size in a few words, for listings."""

    @abstractmethod
    def rules(self) -> Iterable[Rule]:
        """The rules that the fields obey."""

    @abstractmethod
    def network(self, patch_size: Sequence[int], in_channels: int) -> nn.Module:
        """Build the family's network, without what all generators share.

        Args:
            patch_size: Two sides in voxels for slices, three for blocks.
            in_channels: Channels of a source.

        Returns:
            A module that maps (batch, in_channels, *spatial) to (batch, 1, *spatial). It may have
            the attribute `reach` of Generator.

        Raises:
            ConfigError: If the patch does not suit the network.
        """

    def multiple(self, patch_size: Sequence[int]) -> int:  # noqa: ARG002
        """By what every side of a source must be divisible, for a network built for a patch."""
        return 1

    def check_patch(self, patch_size: Sequence[int]) -> None:  # noqa: B027
        """Refuse patches that the network cannot take.

        Raises:
            ConfigError: Names data.patch_size, the rule and the remedy.
        """


class Generator(nn.Module):
    """A network of any family, then output activation, residual and sharpening, in this order.

    Args:
        config: The network.
        patch_size: Two sides in voxels for slices, three for blocks.
        in_channels: Channels of a source.
        slices: How many of these are the first contrast's; None for all of them.

    Attributes:
        multiple: Every side of the source must be divisible by it; 1 where any side serves.
        reach: In eval mode, voxels to cut from each side of a part of the source so that the
            output is that of the whole, if the part starts at multiples of `multiple`; None where
            it depends on where the source starts and ends, which is so wherever strides or pools
            halve the resolution and with instance norm.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        patch_size: Sequence[int],
        in_channels: int,
        slices: int | None = None,
    ) -> None:
        super().__init__()
        dims = len(patch_size)
        self._slices = in_channels if slices is None else slices
        self.network = config.network(patch_size, in_channels)
        initialise(self.network, config.init)
        self.curve = IntensityCurve() if config.intensity_map else None
        self.output = OUTPUTS[config.output]()
        self.sharpen = nn.Identity() if config.sharpen == "none" else Sharpen(config.sharpen, dims)
        self.residual = config.residual
        self.multiple = config.multiple(patch_size)
        self.reach: int | None = getattr(self.network, "reach", None)
        if self.reach is not None and isinstance(self.sharpen, Sharpen):
            self.reach += self.sharpen.reach

    def forward(self, source: Tensor) -> Tensor:
        """Predict the target.

        Args:
            source: Shape (batch, in_channels, *spatial), standardised intensity: the contrasts one
                after the other, each with its slices. The curve applies to the first contrast, and
                a residual is added to its middle slice.

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
        if self.curve is not None:
            mapped = self.curve(source[:, : self._slices])
            further = source[:, self._slices :]
            source = torch.cat((mapped, further), dim=1) if further.shape[1] else mapped
        synthetic = self.output(self.network(source))
        if self.residual:
            centre = self._slices // 2
            synthetic = synthetic + source[:, centre : centre + 1]
        return self.sharpen(synthetic)

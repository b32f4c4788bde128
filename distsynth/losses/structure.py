"""The structure term: 1 - SSIM in Gaussian windows, in slices or in space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distsynth.errors import ConfigError
from distsynth.losses.term import MaskedConfig, Outputs, Term, check_same_shape
from distsynth.rules import Rule
from sharding.volumes.intensities import CENTRE, WIDTH

SIGMA = 1.5
"""Standard deviation of a window in voxels, as Wang et al. (2004) have it."""
C1, C2 = 0.01**2, 0.03**2
"""SSIM's constants on a scale of [0, 1]."""
_CONV = {2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class StructureConfig(MaskedConfig):
    """Fields of the structure term."""

    lambda_structure: float = field(default=0.0, kw_only=True)
    """Weight of 1 - SSIM."""
    structure_window: int = field(default=7, kw_only=True)
    """Voxels along a side of its windows; evaluation has 11."""

    def rules(self) -> Iterable[Rule]:
        """An odd window of a useful size."""
        side = self.structure_window
        yield Rule("structure_window", 3 <= side <= 31 and side % 2 == 1, "odd, 3 to 31", side)

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse patches that are smaller than a window."""
        if min(patch_size) < self.structure_window:
            raise ConfigError(
                f"loss.structure_window must be at most the patch's shortest side, "
                f"{min(patch_size)}, got {self.structure_window}"
            )


class Structure(Term):
    """1 - SSIM, mean over all windows that lie within the patch; each counts as its centre does.

    SSIM is defined for intensities that are not negative: standardised ones are brought near [0, 1]
    by the inverse of (x - 0.2) / 0.3; with shards of `percentile` that is the clipped scale itself.
    """

    name = "structure"
    config = StructureConfig
    kernel: Tensor

    def __init__(self, config: StructureConfig) -> None:
        super().__init__()
        place = torch.arange(config.structure_window) - config.structure_window // 2
        kernel = torch.exp(-place.square() / (2 * SIGMA**2))
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)
        self.weights = config.weights

    @classmethod
    def description(cls, config: Any) -> str:
        """The term in a few words."""
        return f"1 - SSIM (windows of {config.structure_window} voxels)"

    def forward(self, outputs: Outputs) -> Tensor:
        """1 - SSIM, a scalar in float32."""
        check_same_shape(outputs.synthetic, outputs.target)
        with torch.autocast(outputs.synthetic.device.type, enabled=False):
            a, b = (part.float() * WIDTH + CENTRE for part in (outputs.synthetic, outputs.target))
            parts = self._smooth(torch.cat((a, b, a * a, b * b, a * b)))
            mean_a, mean_b, square_a, square_b, product = parts.chunk(5)
            own, other, both = mean_a.square(), mean_b.square(), mean_a * mean_b
            similarity = ((2 * both + C1) * (2 * (product - both) + C2)) / (
                (own + other + C1) * (square_a - own + square_b - other + C2)
            )
            weights = self.weights(outputs.inside)
            if weights is None:
                return 1 - similarity.mean()
            return ((1 - similarity) * self._centres(weights)).mean()

    def _centres(self, images: Tensor) -> Tensor:
        """The voxels at which whole windows are centred."""
        border = len(self.kernel) // 2
        for axis in range(2, images.dim()):
            images = images.narrow(axis, border, images.shape[axis] - 2 * border)
        return images

    def _smooth(self, images: Tensor) -> Tensor:
        """Windowed means of images (n, 1, *sides), where whole windows fit."""
        dims = images.dim() - 2
        for axis in range(dims):
            shape = [1] * (2 + dims)
            shape[2 + axis] = -1
            images = _CONV[dims](images, self.kernel.view(shape))
        return images

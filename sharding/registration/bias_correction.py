"""N4 bias correction (section 5.1; Tustison et al., 2010), by SimpleITK."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from sharding.io.records import STRICT
from sharding.volumes.volume import Volume

SPLINE_ORDER = 3
FOREGROUND = 0.15
"""Tissue is what exceeds this share of the 99.9 percentile: above the noise of the air."""
LEAST_VOXELS = 32
"""No axis is shrunk below this many voxels."""


@dataclass(frozen=True)
class CorrectConfig:
    """How the bias field is fitted."""

    __pydantic_config__ = STRICT

    shrink: int = 4
    """The field is fitted to every so many voxels along each axis, where an axis has plenty."""
    spline_mm: float = 200.0
    """Distance of the field's control points at the coarsest level; it halves at each further."""
    iterations: tuple[int, ...] = (50, 50, 50, 50)
    """Most iterations at each level, coarse to fine."""
    convergence: float = 1e-3
    """A level ends when the field changes by less than this share."""

    def __post_init__(self) -> None:
        if self.shrink < 1:
            raise ValueError(f"shrink must be >= 1, got {self.shrink}")
        if not 0 < self.spline_mm < math.inf:
            raise ValueError(f"spline_mm must be > 0, got {self.spline_mm}")
        if not self.iterations or min(self.iterations) < 1:
            raise ValueError(f"iterations must be >= 1 at each level, got {self.iterations}")
        if not self.convergence > 0:
            raise ValueError(f"convergence must be > 0, got {self.convergence}")


def correct_bias(
    volume: Volume, config: CorrectConfig, mask: NDArray[np.bool_] | None = None
) -> tuple[Volume, NDArray[np.float32]]:
    """Remove a smooth multiplicative field.

    Runs in one thread, so that the result does not depend on the machine's cores: specimens are
    what is done in parallel.

    Args:
        volume: Any intensity units; negative ones count as zero when the field is fitted.
        config: How to fit the field.
        mask: Where to fit it; None takes the voxels over FOREGROUND. It should hold all tissue:
            Otsu's threshold, which parts dark tissue from bright, left over twice as much of a
            known field.

    Returns:
        The corrected volume, in the same units, and the field that it was divided by: shape
        (x, y, z), mean 1 in the mask.

    Raises:
        ValueError: If the mask is empty.
    """
    if mask is None:
        mask = volume.data > FOREGROUND * np.percentile(volume.data, 99.9)
    if not np.any(mask):
        raise ValueError("the mask of the bias correction must not be empty")
    image = _image(np.clip(volume.data, 0, None), volume)
    shrink = [min(config.shrink, max(1, size // LEAST_VOXELS)) for size in volume.shape]
    small = sitk.Shrink(image, shrink)
    small_mask = sitk.Shrink(_image(mask.astype(np.uint8), volume), shrink)
    if not sitk.GetArrayViewFromImage(small_mask).any():
        # A mask thinner than the steps: fit to every voxel.
        small, small_mask = image, _image(mask.astype(np.uint8), volume)

    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations(config.iterations)
    n4.SetConvergenceThreshold(config.convergence)
    n4.SetSplineOrder(SPLINE_ORDER)
    lengths = np.array(volume.shape) * volume.spacing_mm
    spans = np.maximum(np.ceil(lengths / config.spline_mm), 1).astype(int)
    n4.SetNumberOfControlPoints((spans + SPLINE_ORDER).tolist())
    n4.Execute(small, small_mask)
    log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T
    field = np.exp(log_field, dtype=np.float32)
    field /= field[mask].mean(dtype=np.float64)
    return volume.with_data(volume.data / field), field


def _image(data: NDArray, volume: Volume) -> sitk.Image:
    """An image of the right voxel size; where it lies is nothing to the field."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing(volume.spacing_mm)
    return image

"""N4 bias correction (section 5.1; Tustison et al., 2010) of a volume in a mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage

from sharding.io.errors import DataError
from sharding.io.records import STRICT
from sharding.registration.n4 import ORDER, fit_field
from sharding.volumes.volume import Volume

FOREGROUND = 0.15
"""Tissue is what exceeds this share of the 99.9 percentile: above the noise of the air."""
REGION_MARGIN = 3
"""Voxels by which a region of another scan is widened: headers align two scans only about."""
LONGEST_SPLINE_MM = 200.0
"""Control points of a human head are this far apart (Tustison et al., 2010)."""
MOST_SPANS = 24
"""Distances between control points along an axis, at the coarsest level."""
NEGATIVE, MOST_OFFSET = 0.01, 0.1
"""Shares of the intensity range: a volume that starts further below 0 is shifted, one that starts
further above 0 is refused."""
LEAST_VOXELS = 32
"""No axis is shrunk below this many voxels."""


@dataclass(frozen=True)
class CorrectConfig:
    """How the bias field is fitted."""

    __pydantic_config__ = STRICT

    shrink: int = 4
    """The field is fitted to every so many voxels along each axis, where an axis has plenty."""
    spline_mm: float | None = None
    """Distance of the field's control points at the coarsest level; it halves at each further one.
    None takes the longest side of the specimen, at most 200 mm."""
    offset: float | None = None
    """Intensity that stands for no signal. None takes 0; or the 0.1 percentile if that is negative;
    and refuses volumes that start far above 0."""
    iterations: tuple[int, ...] = (50, 50, 50, 50)
    """Most iterations at each level, coarse to fine."""
    convergence: float = 1e-3
    """A level ends when the field changes by less than this share."""

    def __post_init__(self) -> None:
        if self.shrink < 1:
            raise ValueError(f"shrink must be >= 1, got {self.shrink}")
        if self.spline_mm is not None and not 0 < self.spline_mm < math.inf:
            raise ValueError(f"spline_mm must be > 0, got {self.spline_mm}")
        if not self.iterations or min(self.iterations) < 1:
            raise ValueError(f"iterations must be >= 1 at each level, got {self.iterations}")
        if self.offset is not None and not math.isfinite(self.offset):
            raise ValueError(f"offset must be finite, got {self.offset}")
        if not self.convergence > 0:
            raise ValueError(f"convergence must be > 0, got {self.convergence}")


def correct_bias(
    volume: Volume,
    config: CorrectConfig,
    mask: NDArray[np.bool_] | None = None,
    where: object = "volume",
) -> tuple[Volume, NDArray[np.float32]]:
    """Remove a smooth multiplicative field.

    Args:
        volume: Any intensity units; what lies below the offset counts as no signal.
        config: How to fit the field.
        mask: Where to fit it; None takes the voxels over FOREGROUND. It should hold all tissue:
            Otsu's threshold, which parts dark tissue from bright, left over twice as much of a
            known field.
        where: Names the volume in errors.

    Returns:
        The corrected volume, in the same units, and the field that it was divided by: shape
        (x, y, z), mean 1 in the mask.

    Raises:
        DataError: If the mask is empty, the intensities start far above 0, or the control points
            are too many.
    """
    offset = _offset(volume, config, where)
    signal = np.clip(volume.data - np.float32(offset), 0, None)
    if mask is None:
        mask = signal > FOREGROUND * np.percentile(signal, 99.9)
    if not np.any(mask):
        raise DataError(str(where), "the mask of the bias correction is empty", "Give another mask")
    control_points = _control_points(volume, mask, config, where)
    image = _image(signal, volume)
    shrink = [min(config.shrink, max(1, size // LEAST_VOXELS)) for size in volume.shape]
    small = sitk.Shrink(image, shrink)
    small_mask = sitk.Shrink(_image(mask.astype(np.uint8), volume), shrink)
    if not sitk.GetArrayViewFromImage(small_mask).any():
        # The mask is thinner than the sampling steps: fit to every voxel.
        small, small_mask = image, _image(mask.astype(np.uint8), volume)

    samples, where_to_fit = (sitk.GetArrayFromImage(part).T for part in (small, small_mask))
    fitted = fit_field(
        samples, where_to_fit > 0, control_points, config.iterations, config.convergence
    )
    field = np.exp(fitted.log_field(volume.shape), dtype=np.float32)
    field /= field[mask].mean(dtype=np.float64)
    if offset:
        moved = np.float32(offset)
        return volume.with_data((volume.data - moved) / field + moved), field
    return volume.with_data(volume.data / field), field


def tissue_within(
    volume: Volume, config: CorrectConfig, region: NDArray[np.bool_], where: object = "volume"
) -> NDArray[np.bool_] | None:
    """Where to fit the field of a volume whose specimen lies roughly within a region.

    Args:
        volume: Any intensity units.
        config: Gives the offset.
        region: Drawn on another scan, so that its border is not exactly that of this one.
        where: Names the volume in errors.

    Returns:
        The voxels over FOREGROUND within the region, which is first widened by REGION_MARGIN
        voxels; None if they are less than half of the region: then it lies elsewhere.

    Raises:
        DataError: If the intensities start far above 0.
    """
    signal = np.clip(volume.data - np.float32(_offset(volume, config, where)), 0, None)
    near = np.asarray(ndimage.binary_dilation(region, iterations=REGION_MARGIN), bool)
    if not near.any():
        return None
    found = near & (signal > FOREGROUND * np.percentile(signal[near], 99.9))
    return found if found.any() and found.sum() >= region.sum() / 2 else None


def _offset(volume: Volume, config: CorrectConfig, where: object) -> float:
    """The intensity that stands for no signal: the field multiplies what exceeds it.

    Raises:
        DataError: If the intensities start far above 0, where signal and offset cannot be told
            apart.
    """
    if config.offset is not None:
        return config.offset
    low, high = (float(value) for value in np.percentile(volume.data, (0.1, 99.9)))
    if low < -NEGATIVE * (high - low):
        return low
    if low > MOST_OFFSET * high:
        raise DataError(
            str(where),
            f"intensities start at {low:.4g}, {low / high:.0%} of the largest: a bias field "
            "multiplies signal, and this may be an offset",
            "Give correct.offset: 0 if it is tissue, or the intensity that stands for no signal",
        )
    return 0.0


def _control_points(
    volume: Volume, mask: NDArray[np.bool_], config: CorrectConfig, where: object
) -> list[int]:
    """Control points of the coarsest field along each axis.

    Raises:
        DataError: If they are too many to be fitted.
    """
    spacing = np.array(volume.spacing_mm)
    spline_mm = config.spline_mm
    if spline_mm is None:
        box = ndimage.find_objects(mask.astype(np.uint8))[0]
        sides = np.array([part.stop - part.start for part in box]) * spacing
        spline_mm = min(LONGEST_SPLINE_MM, float(sides.max()))
    spans = np.maximum(np.ceil(np.array(volume.shape) * spacing / spline_mm), 1).astype(int)
    if spans.max() > MOST_SPANS:
        sizes = "x".join(str(size + ORDER) for size in spans)
        raise DataError(
            str(where),
            f"control points every {spline_mm:g} mm are {sizes}, at most "
            f"{MOST_SPANS + ORDER} along an axis can be fitted",
            "Give a larger correct.spline-mm, or correct the voxel size in the header",
        )
    return (spans + ORDER).tolist()


def _image(data: NDArray, volume: Volume) -> sitk.Image:
    """An image of the right voxel size; the field does not depend on its position."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing(volume.spacing_mm)
    return image

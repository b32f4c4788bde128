"""How bright a specimen's volumes are shown: one window for greys, one limit for differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsynth.metrics.views import View
from sharding.volumes.slabs import Empty, in_memory, slabs

Volume = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


def finite_values(
    volumes: Sequence[View], masks: Sequence[Mask], empty: Empty = in_memory
) -> Volume:
    """The finite voxels of volumes in their masks, one after the other, gathered slab by slab.

    Args:
        volumes: Of any shapes.
        masks: One for each, of its shape.
        empty: Makes the array of the values.
    """
    most = sum(int(np.count_nonzero(mask)) for mask in masks)
    kind = np.result_type(*(volume[(slice(0, 0),) * len(volume.shape)] for volume in volumes))
    values, count = empty((most,), kind), 0
    for volume, mask in zip(volumes, masks, strict=True):
        for slab in slabs(mask.shape):
            found = volume[slab][mask[slab]]
            found = found[np.isfinite(found)]
            values[count : count + len(found)] = found
            count += len(found)
    return values[:count]


def grey_window(finite: Volume) -> tuple[float, float]:
    """What is black and what is white: the 0.5th to 99.5th percentile.

    Args:
        finite: From finite_values; they are reordered.
    """
    percentiles = [0.5, 99.5]
    low, high = (
        np.percentile(finite, percentiles, overwrite_input=True) if finite.size else (0.0, 1.0)
    )
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


def signed_limit(finite: Volume) -> float:
    """Symmetric limit of a signed difference: the 99.5th percentile of its size.

    Args:
        finite: From finite_values; they are changed.
    """
    np.abs(finite, out=finite)
    return (float(np.percentile(finite, 99.5, overwrite_input=True)) if finite.size else 0.0) or 1.0


def check_volumes(
    name: str,
    synthetic: Mapping[str, Volume],
    source: Volume,
    target: Volume,
    mask: Mask,
    spacing_mm: Sequence[float],
) -> None:
    """Refuse volumes that cannot be shown side by side.

    Raises:
        ValueError: If there is no synthetic volume, or shapes, mask or spacing do not fit.
    """
    if not synthetic:
        raise ValueError(f"{name}: there is no synthetic volume to show")
    if target.ndim != 3:
        raise ValueError(f"{name}: target must be of shape (x, y, z), got {target.shape}")
    for key, array in {"source": source, "mask": mask, **synthetic}.items():
        if array.shape != target.shape:
            raise ValueError(
                f"{name}: {key} must have the target's shape {target.shape}: {array.shape}"
            )
    if not mask.any():
        raise ValueError(f"{name}: the mask is empty, there is no slice to show")
    if len(spacing_mm) != 3 or not all(0 < mm < np.inf for mm in spacing_mm):
        raise ValueError(f"{name}: spacing_mm must be three sizes > 0, got {spacing_mm}")

"""How bright a specimen's volumes are shown: one window for greys, one limit for differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


def grey_window(values: Volume) -> tuple[float, float]:
    """What is black and what is white: the 0.5th to 99.5th percentile of what is finite."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


def signed_limit(values: Volume) -> float:
    """Symmetric limit of a signed difference: the 99.5th percentile of its size."""
    finite = np.abs(values[np.isfinite(values)])
    return (float(np.percentile(finite, 99.5)) if finite.size else 0.0) or 1.0


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

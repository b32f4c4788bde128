"""Errors with planted artefacts, which the measures of seams and checkerboards must tell apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from distsynth.inference.stitching import border_planes
from sharding.shards.patches import dense_locations

SHAPE = (112, 104, 48)
PATCH, STRIDE = (64, 64), 20


def paper_borders(trim: int = 0) -> list[NDArray[np.intp]]:
    """Where the paper's patches, 64x64 at a stride of 20, start and end."""
    locations = dense_locations(SHAPE, PATCH, STRIDE, (2,))
    return border_planes(locations, SHAPE, PATCH, trim)


def smooth_error(rng: np.random.Generator, size: float = 0.2) -> NDArray[np.float32]:
    """The error of a network without seams: correlated over a voxel, of this deviation."""
    error = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.0)
    return (size * error / error.std()).astype(np.float32)


def steps(borders: list[NDArray[np.intp]], size: float) -> NDArray[np.float32]:
    """Up by `size` at one border, down at the next."""
    found = np.zeros(SHAPE, np.float32)
    for axis, planes in enumerate(borders):
        line = np.searchsorted(planes, np.arange(SHAPE[axis]), side="right") % 2
        found += np.expand_dims(size * line.astype(np.float32), tuple({0, 1, 2} - {axis}))
    return found


def stripes(period: int, size: float) -> NDArray[np.float32]:
    """Every `period`-th plane along the first axis raised by `size`."""
    line = size * (np.arange(SHAPE[0]) % period == 0)
    return np.broadcast_to(line[:, None, None].astype(np.float32), SHAPE)


def lattice(size: float) -> NDArray[np.float32]:
    """The product of two waves of period 4, of this amplitude."""
    x, y = (np.cos(np.pi / 2 * np.arange(side) + shift) for side, shift in zip(SHAPE, (0.7, 0.2)))  # noqa: B905
    return np.broadcast_to((size * x[:, None, None] * y[None, :, None]).astype(np.float32), SHAPE)

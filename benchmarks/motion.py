"""A known misalignment and landmarks that follow it: what registration is measured by."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume

NODES = 24
"""Of the random field along the volume's longest side."""


@dataclass(frozen=True)
class Motion:
    """How far a volume is moved; zero leaves a part out."""

    warp_mm: float = 0.0
    """Largest displacement of the smooth random field."""
    smoothness: float = 0.12
    """Standard deviation of the Gaussian that makes it smooth, as a share of the longest side."""
    rotation_degrees: float = 0.0
    """About a random axis through the centre."""
    shift_mm: float = 0.0
    """In a random direction."""
    scale: float = 0.0
    """Largest random entry added to the linear part: scales and shears."""
    seed: int = 0


def random_motion(volume: Volume, motion: Motion) -> Transform:
    """Draw a motion: where each point of the moved scan lies in the volume.

    Args:
        volume: Its field of view is moved about its centre.
        motion: How far.

    Returns:
        Moved world to the volume's world: `apply` it to the volume to get the moved scan. A
        registration of the moved scan to the volume looks for its inverse.
    """
    rng = np.random.default_rng(motion.seed)
    ends = [(0, size - 1) for size in volume.shape]
    corners = apply_affine(volume.affine, np.array(list(itertools.product(*ends))))
    low, high = corners.min(axis=0), corners.max(axis=0)
    step = (high - low).max() / (NODES - 1)
    shape = tuple(np.ceil((high - low) / step).astype(int) + 1)
    field = np.stack(
        [
            ndimage.gaussian_filter(rng.normal(size=shape), motion.smoothness * NODES)
            for _ in range(3)
        ],
        axis=-1,
    )
    field -= field.mean(axis=(0, 1, 2))
    field *= motion.warp_mm / np.linalg.norm(field, axis=-1).max()
    field_affine = np.diag([step, step, step, 1.0])
    field_affine[:3, 3] = low

    turn = motion.rotation_degrees * _direction(rng)
    linear = Rotation.from_rotvec(turn, degrees=True).as_matrix()
    linear = linear @ (np.eye(3) + rng.uniform(-motion.scale, motion.scale, (3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = linear
    centre = (low + high) / 2
    affine[:3, 3] = centre + motion.shift_mm * _direction(rng) - linear @ centre
    return Transform(affine, field.astype(np.float32), field_affine)


def landmarks(
    volume: Volume, inside: NDArray[np.bool_], motion: Transform, count: int, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Random points of a volume, and where the motion has taken them.

    Args:
        volume: The one that was moved.
        inside: Voxels to choose from, shape of the volume.
        motion: From random_motion.
        count: Number of points.
        seed: Fixes the choice.

    Returns:
        Points in the volume's world and in the moved scan's, millimetres, each (count, 3).
    """
    voxels = np.argwhere(inside)
    chosen = np.random.default_rng(seed).choice(len(voxels), count, replace=len(voxels) < count)
    points = apply_affine(volume.affine, voxels[chosen])
    return points, motion.inverse_points(points)


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)

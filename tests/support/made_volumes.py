"""Volumes made of a formula or of noise."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from sharding.volumes.volume import Volume

SLOPE = np.array([0.7, -1.3, 2.1])


def ramp(shape, affine, offset=50.0):
    """A volume whose intensity is linear in world coordinates."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return Volume((world @ SLOPE + offset).astype(np.float32), affine)


def rotated(angles, spacing, translation):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = translation
    return affine


def noise(shape=(12, 11, 10), seed=0, affine=None):
    data = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
    return Volume(data, np.diag([0.5, 0.4, 0.3, 1]) if affine is None else affine)

"""How a source is registered and a cohort prepared."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sharding.io.records import STRICT
from sharding.registration.bias_correction import CorrectConfig
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.volume import Volume

LEAST_VOXELS = 16
"""No axis is shrunk below this many voxels."""
LEAST = {
    "affine_iterations": 1,
    "deform_shrink": 1,
    "deform_radius": 1,
    "update_smoothing": 0,
    "field_smoothing": 0,
    "max_voxels": LEAST_VOXELS**3,
    "seed": 0,
}
"""Least value of fields of RegisterConfig."""


@dataclass(frozen=True)
class RegisterConfig:
    """How a source is registered."""

    __pydantic_config__ = STRICT

    affine_metric: Literal["mutual-information", "correlation"] = "mutual-information"
    """What the rigid and affine registration maximises: mutual information allows for any change
    of contrast; correlation is for scans whose intensities depend on each other linearly."""
    affine_shrink: tuple[int, ...] = (8, 4, 2)
    """Levels of the rigid and affine registration, coarse to fine, in voxels of the target."""
    affine_iterations: int = 150
    """Most iterations at each level."""
    deform_shrink: int = 2
    """Finest level of the deformable registration, in voxels of the target."""
    deform_iterations: tuple[int, ...] = (100, 50, 20)
    """Iterations at each level, coarse to fine; each level has half the voxel size of the one
    before."""
    deform_radius: int = 2
    """Radius of the neighbourhoods whose correlation the deformable registration maximises, in
    voxels of the level."""
    update_smoothing: float = 2.0
    """Standard deviation of the Gaussian that smooths each update of the field, in voxels of the
    level: larger is stiffer."""
    field_smoothing: float = 1.5
    """Standard deviation of the Gaussian that smooths the whole field after each update."""
    max_voxels: int = 4_000_000
    """No level holds more voxels: larger volumes are shrunk further."""
    seed: int = 0
    """Fixes which voxels the linear registration samples, and the little noise that greedy adds."""

    def __post_init__(self) -> None:
        levels = self.affine_shrink
        if not levels or min(levels) < 1 or list(levels) != sorted(levels, reverse=True):
            raise ValueError(f"affine_shrink must fall from coarse to fine, all >= 1, got {levels}")
        if not self.deform_iterations or min(self.deform_iterations) < 1:
            raise ValueError(
                f"deform_iterations must be one or more numbers >= 1, got {self.deform_iterations}"
            )
        for name, least in LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")


Level = tuple[Volume, Volume, NDArray[np.bool_] | None]
"""Target, source and the target's mask at one resolution, intensities in [0, 1]."""


StepName = Literal["correct", "scale", "rigid", "affine", "deform", "resample"]


STEPS: tuple[StepName, ...] = get_args(StepName)
"""All steps, in the order in which they run."""
REGISTRATION_STEPS = ("rigid", "affine", "deform")


@dataclass(frozen=True)
class PrepareConfig:
    """How a cohort is prepared."""

    __pydantic_config__ = STRICT

    steps: tuple[StepName, ...] = STEPS
    """What to do; the order is always correct, scale, rigid, affine, deform, resample."""
    correct: CorrectConfig = field(default_factory=CorrectConfig)
    """N4 bias correction."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    """Clipping, foreground and overlap."""
    register: RegisterConfig = field(default_factory=RegisterConfig)
    """Affine and deformable registration."""

    def __post_init__(self) -> None:
        if not self.steps or tuple(step for step in STEPS if step in self.steps) != self.steps:
            raise ValueError(
                f"steps must be some of {', '.join(STEPS)}, each once and in this order, "
                f"got {', '.join(self.steps) or 'none'}"
            )
        if self.preprocess.target_spacing_mm:
            raise ValueError("preprocess.target_spacing_mm is for distsynth shard, not for prepare")
        if self.registers and "resample" not in self.steps:
            raise ValueError(
                "steps rigid, affine and deform have no effect without resample: add it"
            )

    @property
    def registers(self) -> bool:
        """Whether the source is moved."""
        return any(step in REGISTRATION_STEPS for step in self.steps)

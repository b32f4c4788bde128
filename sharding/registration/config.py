"""How a source is registered, and the input of the backends."""

from __future__ import annotations

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


@dataclass(frozen=True)
class RegisterConfig:
    """How a source is registered."""

    __pydantic_config__ = STRICT

    backend: Literal["simpleitk", "greedy"] = "simpleitk"
    """SimpleITK, or greedy: pip install "distsynth[greedy]"."""
    metric: Literal["mutual-information", "correlation"] = "mutual-information"
    """What is maximised: mutual information allows for any change of contrast; correlation (of
    small neighbourhoods, for the deformation) is for scans of similar contrast."""
    affine_shrink: tuple[int, ...] = (8, 4, 2)
    """Levels of the affine registration, coarse to fine, in voxels of the target."""
    affine_iterations: int = 150
    """Most iterations at each level."""
    deform_shrink: tuple[int, ...] = (4, 2)
    """Levels of the deformable registration."""
    deform_iterations: tuple[int, ...] = (60, 36)
    """Iterations at each of them."""
    update_smoothing: float = 3.5
    """Standard deviation of the Gaussian that smooths each update of the field, in voxels of the
    level: larger is stiffer."""
    field_smoothing: float = 0.5
    """Standard deviation of the Gaussian that smooths the whole field after each update."""
    max_voxels: int = 4_000_000
    """No level holds more voxels: larger volumes are shrunk further."""
    seed: int = 0
    """Fixes which voxels the affine registration samples."""

    def __post_init__(self) -> None:
        for name in ("affine_shrink", "deform_shrink"):
            levels = getattr(self, name)
            if not levels or min(levels) < 1 or list(levels) != sorted(levels, reverse=True):
                raise ValueError(f"{name} must fall from coarse to fine, all >= 1, got {levels}")
        if len(self.deform_iterations) != len(self.deform_shrink):
            raise ValueError(
                f"deform_iterations must have a number for each of {len(self.deform_shrink)} "
                f"levels, got {self.deform_iterations}"
            )
        if min(self.deform_iterations) < 1 or self.affine_iterations < 1:
            raise ValueError("iterations must be >= 1")
        for name in ("update_smoothing", "field_smoothing"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.max_voxels < LEAST_VOXELS**3:
            raise ValueError(f"max_voxels must be >= {LEAST_VOXELS**3}, got {self.max_voxels}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")


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

"""What to cut from a cohort, and how to pack it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sharding.io.records import STRICT
from sharding.volumes.cohort import SPLITS
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.splits import split_sizes


@dataclass(frozen=True)
class ShardConfig:
    """What to cut, and how to pack it."""

    __pydantic_config__ = STRICT

    patch_size: tuple[int, ...] = (64, 64)
    """Two sides for slices, three for blocks."""
    patches_per_specimen: int = 300
    """Random training patches (section 5.2)."""
    axes: tuple[int, ...] = (0, 1, 2)
    """Slicing axes of 2D training patches."""
    foreground: float = 0.8
    """Share of training patches centred on foreground; the others lie anywhere."""
    stride: int = 20
    """Voxels between dense validation and test patches (section 5.2)."""
    alignment: int = 1
    """Every patch starts at multiples of this many voxels along its sides. With 2, a network that
    gathers cells of two voxels always sees the same ones. The far ends of a volume are extended to
    a multiple of it by repeating the last voxels."""
    neighbours: int = 0
    """Slices on each side of a 2D patch that its source carries as channels (2.5D)."""
    dense_axes: tuple[int, ...] = (2,)
    """Slicing axes of 2D dense patches."""
    val_slices: int = 0
    """Validate on this many evenly spaced slices an axis; 0 takes all. The test split is whole."""
    fractions: tuple[float, float, float] = (0.7, 0.2, 0.1)
    """Shares of specimens for train, val and test when the cohort does not say."""
    block: int = 256
    """Patches in a record."""
    shard_mb: float = 64.0
    """Target size of a shard in MiB: specimens are put together until it is reached, and a larger
    one is cut between records. None exceeds it, unless one record does."""
    seed: int = 0
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)

    def __post_init__(self) -> None:
        for name in ("patches_per_specimen", "stride", "block", "alignment"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("val_slices", "seed", "neighbours"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0 < self.shard_mb < math.inf:
            raise ValueError(f"shard_mb must be > 0, got {self.shard_mb}")
        if not 0 <= self.foreground <= 1:
            raise ValueError(f"foreground must be from 0 to 1, got {self.foreground}")
        if len(self.patch_size) not in (2, 3) or min(self.patch_size) < 4:
            raise ValueError(
                f"patch_size must be two or three sides of at least 4, got {self.patch_size}"
            )
        if self.stride > min(self.patch_size):
            raise ValueError(
                f"stride must be at most the smallest patch side {min(self.patch_size)}, got "
                f"{self.stride}: a larger one leaves voxels uncovered"
            )
        aligned = ("stride", (self.stride,)), ("patch_size", self.patch_size)
        for name, values in aligned:
            if any(value % self.alignment for value in values):
                raise ValueError(
                    f"{name} must be divisible by the alignment of {self.alignment}, got "
                    f"{getattr(self, name)}"
                )
        if self.neighbours and len(self.patch_size) != 2:
            raise ValueError(f"neighbours must be 0 for 3D patches, got {self.neighbours}")
        split_sizes(len(SPLITS), self.fractions)
        for name in ("axes", "dense_axes"):
            axes = getattr(self, name)
            if not axes or len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}:
                raise ValueError(f"{name} must be distinct axes of 0, 1, 2, got {axes}")

    @property
    def slices(self) -> int:
        """Slices that a contrast of a source patch carries: the slice itself and its neighbours."""
        return 1 + 2 * self.neighbours

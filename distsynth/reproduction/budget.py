"""How much of the paper's training is done, and with what; quick to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distsynth.errors import ConfigError
from sharding.io.records import STRICT

if TYPE_CHECKING:
    from distsynth.evaluation.forest import ForestConfig

PAPER_PATCHES, PAPER_STRIDE = 300, 20
"""Training patches a specimen, and voxels between those of a prediction (section 5.2)."""


@dataclass(frozen=True)
class Budget:
    """How much of the paper's training is done; printed beside every number."""

    __pydantic_config__ = STRICT

    epochs: float = 1.0
    """Fraction of each row's epochs; at least one is trained."""
    least_epochs: int = 1
    """Epochs that each row is trained at least, whatever the fraction says."""
    slow_epochs: int = 0
    """Epochs of the rows whose steps cost some twenty times as much as a U-Net's (fcn-1, dcgan-2 to
    dcgan-4); 0 trains them like the others."""
    patches: int = PAPER_PATCHES
    """Training patches a specimen; the paper's 300."""
    stride: int = PAPER_STRIDE
    """Voxels between the patches of a stitched prediction; 20, the paper's, leaves each row its
    own."""
    val_slices: int = 8
    """Slices that each epoch is validated on; 0 for all."""
    trees: int = 200
    """Trees of the random forest."""
    tree_rows: int = 100_000
    """Voxels that each tree is grown on."""

    def __post_init__(self) -> None:
        rules = (
            ("epochs", 0 < self.epochs <= 1, "in (0, 1]"),
            ("least_epochs", self.least_epochs >= 1, ">= 1"),
            ("slow_epochs", self.slow_epochs >= 0, ">= 0"),
            ("patches", self.patches >= 1, ">= 1"),
            ("stride", 1 <= self.stride <= 48, "from 1 to 48: patches must meet"),
            ("val_slices", self.val_slices >= 0, ">= 0"),
            ("trees", self.trees >= 1, ">= 1"),
            ("tree_rows", self.tree_rows >= 1, ">= 1"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ConfigError(f"budget.{name} must be {rule}, got {getattr(self, name)}")

    def epochs_of(self, full: int, slow: bool = False) -> int:
        """Epochs that a row is trained.

        Args:
            full: Epochs that the paper trains it.
            slow: Whether the row is one of those that `slow_epochs` names.
        """
        if slow and self.slow_epochs:
            return self.slow_epochs
        return max(self.least_epochs, round(full * self.epochs))

    def in_words(self, full: int, slow: bool = False) -> str:
        """The budget of a row in words; arguments as for `epochs_of`."""
        patches = f"{self.patches} of {PAPER_PATCHES} patches a specimen"
        return f"{self.epochs_of(full, slow)} of {full} epochs, {patches}, stride {self.stride}"

    def in_words_of_forest(self, config: ForestConfig) -> str:
        """The budget of a forest in words."""
        patches = f"{self.patches} of {PAPER_PATCHES} patches a specimen"
        return f"{config.trees} trees of {config.max_samples} rows, {patches}"


@dataclass(frozen=True)
class Resources:
    """What each run gets."""

    cpus: int = 1
    """CPU cores, and so threads, of each run."""
    gpus: float = 0.0
    """GPUs of each run: whole ones, or a fraction so that runs share one."""
    concurrent: int = 0
    """Most runs at a time; 0 leaves that to the resources."""
    retries: int = 3
    """How often a run that crashes, or loses its node, is continued from its checkpoint."""

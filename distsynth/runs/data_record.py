"""What a network was trained on, as far as predicting and evaluating need to know it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.shards.manifest import Manifest
from sharding.volumes.cohort import Specimen, Split
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.header import LEAST_MM, MOST_MM, is_orientation
from sharding.volumes.intensities import CENTRE, WIDTH, fingerprint
from sharding.volumes.landmarks import Standards
from sharding.volumes.pair import Pair
from sharding.volumes.profile import TrainingProfile

_DIGEST = "sha256:"
"""Prefix of a digest: no name of a specimen starts like this, as names have no colon."""


@dataclass(frozen=True)
class DataRecord:
    """What the network was trained on, as far as prediction and evaluation need it.

    Attributes:
        manifest_sha256: Fingerprint of the shard set.
        preprocess: How volumes became pairs.
        spacing_mm: Voxel size of the first training target: the grid to predict on.
        orientation: Axis directions of the targets, such as RAS.
        splits: Specimen name to split; in an export a digest takes the place of a name.
        seen_sha256: Fingerprints of every training and validation scan; none may be a test scan.
        standards: Landmarks that intensities are moved to; empty without matching.
        typical_target: What is subtracted from scaled targets and what they are divided by, mean
            over training specimens: how to undo a prediction without any target.
        profile: What the training sources are like; None if the shards do not tell.
        contrasts: Names of the source's contrasts, in the order of the channels; none where there
            is one source.
        further: What the training sources of each contrast after the first one are like.
    """

    manifest_sha256: str
    preprocess: PreprocessConfig
    spacing_mm: tuple[float, float, float]
    orientation: str
    splits: dict[str, Split]
    seen_sha256: tuple[str, ...]
    standards: Standards = field(default_factory=Standards)
    typical_target: tuple[float, float] = (CENTRE, WIDTH)
    profile: TrainingProfile | None = None
    contrasts: tuple[str, ...] = ()
    further: tuple[TrainingProfile | None, ...] = ()

    def __post_init__(self) -> None:
        if len(self.further) != max(0, len(self.contrasts) - 1):
            raise ValueError(
                f"further must have an entry for each contrast after the first of "
                f"{', '.join(self.contrasts) or 'none'}, got {len(self.further)}"
            )
        if not all(LEAST_MM <= side <= MOST_MM for side in self.spacing_mm):
            raise ValueError(
                f"spacing_mm must be from {LEAST_MM} to {MOST_MM:g}, got {self.spacing_mm}"
            )
        if not is_orientation(self.orientation):
            raise ValueError(f"orientation must be one such as RAS, got {self.orientation!r}")

    @classmethod
    def of(cls, manifest: Manifest) -> DataRecord:
        """Summarise a shard set."""
        seen = [row for row in manifest.specimens if row.split != "test"]
        training = [row for row in seen if row.split == "train"]
        first = training[0]
        profile, *further = (
            TrainingProfile.of([each for each in profiles if each])
            for profiles in zip(*(row.profiles for row in training), strict=True)
        )
        return cls(
            manifest_sha256=manifest.sha256,
            preprocess=manifest.config.preprocess,
            spacing_mm=first.spacing_mm,
            orientation=first.orientation,
            splits={row.name: row.split for row in manifest.specimens},
            seen_sha256=tuple(digest for row in seen for digest in row.scans_sha256),
            standards=manifest.standards,
            typical_target=(
                sum(row.target.mean for row in training) / len(training),
                sum(row.target.std for row in training) / len(training),
            ),
            profile=profile,
            contrasts=manifest.contrasts,
            further=tuple(further),
        )

    @property
    def profiles(self) -> tuple[TrainingProfile | None, ...]:
        """What the training sources of each contrast are like."""
        return (self.profile, *self.further)

    def without_target(self, synthetic: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring a standardised prediction to the scale of [0, 1] without looking at its target."""
        mean, std = self.typical_target
        return synthetic * np.float32(std) + np.float32(mean)

    def split_of(self, specimen: str) -> Split:
        """The split of a specimen; one that the shards did not hold counts as test."""
        return self.splits.get(specimen) or self.splits.get(self._digest(specimen), "test")

    def refuse_seen(self, specimen: Specimen, pair: Pair) -> None:
        """Refuse a test scan on which the model was trained or selected.

        Raises:
            DataError: If this is such a scan.
        """
        natives = (pair.native_source, *(each.native for each in pair.further))
        sources = zip(specimen.sources, natives, strict=True)
        for file, volume in (*sources, (specimen.target, pair.grid)):
            if fingerprint(volume) in self.seen_sha256:
                raise DataError(
                    str(file),
                    "this scan was seen in training or validation and cannot be a test scan",
                    "Take the specimen out of the test split",
                )

    def anonymous(self) -> DataRecord:
        """The same with a digest in the place of each specimen's name.

        A known name can be looked up; names that are hard to guess cannot be recovered.
        """
        splits = {
            name if name.startswith(_DIGEST) else self._digest(name): split
            for name, split in self.splits.items()
        }
        return replace(self, splits=splits)

    def _digest(self, specimen: str) -> str:
        content = f"{self.manifest_sha256}/{specimen}".encode()
        return _DIGEST + hashlib.sha256(content).hexdigest()

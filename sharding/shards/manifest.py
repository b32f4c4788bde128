"""The shard format: WebDataset tars of patch blocks, and the manifest that describes them.

A shard set is a folder, on a disk or any storage that fsspec knows:

    manifest.json                   Manifest: configuration, specimens, index and checksum of shards
    train/train-000000.tar ...      random patches, specimen by specimen: the reader mixes them
    val/val-000000.tar ...          dense patches
    test/test-000000.tar ...        dense patches
    masks/SPECIMEN-SUM.npy          foreground bits of a specimen, of eight voxels a byte

A record holds a block of one specimen's patches as three plain arrays, aligned by row. Its key is
the specimen's name, dots as plus signs, and the number of the block:

    KEY.source.npy   uint16, (n, c, *patch_size)   source intensity, [0, 1] scaled to 0..65535; the
                                                   c channels are the contrasts one after the other,
                                                   of each its neighbouring slices; mostly one
    KEY.target.npy   uint16, (n, *patch_size)      target, in the same scale
    KEY.where.npy    int32, (n, 4)                 axis (-1 for a block) and first voxel

Standardising is left to the reader's device: z = (value / 65535 - mean) / std with the mean and
std of the specimen's intensity transform, which the manifest keeps for each contrast. If the
transform has landmarks, value / 65535 is first moved from them to the mean landmarks of the
training specimens.

Nothing in a record depends on the rest of the cohort, so that specimens are cut in any order, on
any machine, and stay as they are when others are added or change their split.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Annotated, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from sharding.io.errors import DataError
from sharding.io.records import STRICT
from sharding.io.storage import Folder
from sharding.shards.config import ShardConfig
from sharding.volumes.cohort import SPECIMEN_NAME, Split
from sharding.volumes.header import is_orientation
from sharding.volumes.intensities import IntensityTransform
from sharding.volumes.landmarks import Standards, standard_landmarks
from sharding.volumes.profile import ScanProfile

FORMAT_VERSION = 4
MANIFEST = "manifest.json"
SHARD_NAME = re.compile(r"(train|val|test)/\1-\d{6}\.tar")


Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], Field(exclude_if=lambda value: not value)]
"""A tuple that is written if it holds something: what several contrasts add to a manifest."""


@dataclass(frozen=True)
class ContrastRecord:
    """A contrast of a specimen's source after the first one.

    Attributes:
        transform: Its intensity transform.
        sha256: Fingerprint of its voxels.
        profile: What it is like, of a training specimen; None for all others.
    """

    __pydantic_config__ = STRICT

    transform: IntensityTransform
    sha256: str
    profile: ScanProfile | None = None


@dataclass(frozen=True)
class SpecimenRecord:
    """One specimen in the manifest. Holds nothing of the header's free text and no path.

    Attributes:
        name: As in the cohort.
        split: train, val or test.
        shape: Target grid in voxels.
        spacing_mm: Target voxel size.
        orientation: Directions of the target's axes, such as RAS; one for the whole cohort.
        patches: How many lie in the shards.
        overlap: Share of the target's foreground that the source covers.
        source: Intensity transform of the source.
        target: Intensity transform of the target.
        source_sha256: Fingerprint of the source's voxels.
        target_sha256: Fingerprint of the target's voxels.
        inputs_sha256: Checksum of the files that the specimen was read from, mask included.
        mask_sha256: Checksum of the mask's file.
        profile: What the source of a training specimen is like; None for all others, and for those
            that were cut before profiles were kept.
        further: The contrasts of the source after the first one.
    """

    __pydantic_config__ = STRICT

    name: str
    split: Split
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    patches: int
    overlap: float
    source: IntensityTransform
    target: IntensityTransform
    source_sha256: str
    target_sha256: str
    inputs_sha256: str
    mask_sha256: str
    profile: ScanProfile | None = None
    further: Several[ContrastRecord] = ()

    @property
    def source_transforms(self) -> tuple[IntensityTransform, ...]:
        """The intensity transform of each contrast of the source."""
        return (self.source, *(each.transform for each in self.further))

    @property
    def profiles(self) -> tuple[ScanProfile | None, ...]:
        """What each contrast of the source is like."""
        return (self.profile, *(each.profile for each in self.further))

    @property
    def scans_sha256(self) -> tuple[str, ...]:
        """Fingerprints of the source, its first contrast first, and of the target."""
        further = (each.sha256 for each in self.further)
        return (self.source_sha256, self.target_sha256, *further)

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.patches < 0:
            raise ValueError(
                f"shape and patches must be positive, got {self.shape}, {self.patches}"
            )
        if not all(0 < side < math.inf for side in self.spacing_mm):
            raise ValueError(f"spacing_mm must be positive and finite, got {self.spacing_mm}")
        if not is_orientation(self.orientation):
            raise ValueError(f"orientation must be one such as RAS, got {self.orientation!r}")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap must be from 0 to 1, got {self.overlap}")


@dataclass(frozen=True)
class SpecimenSpan:
    """The records of one specimen within a shard.

    Attributes:
        specimen: Its name.
        patches: How many they hold.
        offset: First byte within the tar.
        bytes: How many bytes.
    """

    __pydantic_config__ = STRICT

    specimen: str
    patches: int
    offset: int
    bytes: int


@dataclass(frozen=True)
class ShardRecord:
    """One tar: its name within the set, what it holds in order, its size and checksum."""

    __pydantic_config__ = STRICT

    name: str
    split: Split
    patches: int
    bytes: int
    sha256: str
    spans: tuple[SpecimenSpan, ...]


@dataclass(frozen=True)
class Manifest:
    """The record of a finished shard set; written last.

    Attributes:
        config: What was cut.
        specimens: In the order of their names.
        shards: In the order of their names.
        left_out: Specimens of the cohort that failed and were left out knowingly.
        version: The version of the format.
        contrasts: Names of the source's contrasts, in the order of its channels; none where there
            is one source.
    """

    __pydantic_config__ = STRICT

    config: ShardConfig
    specimens: tuple[SpecimenRecord, ...]
    shards: tuple[ShardRecord, ...]
    left_out: tuple[str, ...] = ()
    version: Literal[4] = FORMAT_VERSION
    contrasts: Several[str] = ()

    @property
    def contrast_count(self) -> int:
        """Contrasts of a source, at least one."""
        return max(1, len(self.contrasts))

    @property
    def channels(self) -> int:
        """Channels of a source patch: of each contrast the slice itself and its neighbours."""
        return self.contrast_count * self.config.slices

    def names(self, split: Split) -> list[str]:
        """Specimens of a split."""
        return [specimen.name for specimen in self.specimens if specimen.split == split]

    def patches(self, split: Split) -> int:
        """Patches of a split."""
        return sum(shard.patches for shard in self.shards if shard.split == split)

    @cached_property
    def standards(self) -> Standards:
        """Standard landmarks: the mean of those of training specimens; empty without matching."""
        seen = [row for row in self.specimens if row.split == "train"]
        return Standards(
            standard_landmarks([row.source.landmarks for row in seen]),
            standard_landmarks([row.target.landmarks for row in seen]),
            tuple(
                standard_landmarks([row.source_transforms[index].landmarks for row in seen])
                for index in range(1, self.contrast_count)
            ),
        )

    def patch_numbers(self, split: Split) -> dict[str, NDArray[np.int64]]:
        """Where each specimen's patches stand in a split, counted through its shards in order."""
        numbers: dict[str, list[NDArray[np.int64]]] = {name: [] for name in self.names(split)}
        first = 0
        for shard in self.shards:
            for span in shard.spans if shard.split == split else ():
                numbers[span.specimen].append(np.arange(first, first + span.patches))
                first += span.patches
        return {name: np.concatenate(parts) for name, parts in numbers.items()}

    def to_json(self) -> str:
        """Indented JSON; the same manifest always gives the same bytes."""
        return _MANIFEST.dump_json(self, indent=1).decode() + "\n"

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the data: two sets with the same one hold the same patches."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


_MANIFEST = TypeAdapter(Manifest)


def read_manifest(folder: Folder) -> Manifest:
    """Read and validate a manifest.

    Raises:
        DataError: If it is missing, damaged or of another version.
    """
    where = folder / MANIFEST
    if not folder.exists(MANIFEST):
        if any(name.startswith("parts/") for name in folder.names("parts")):
            rule = "this shard set is not finished"
            raise DataError(where, rule, "Run the same distsynth shard again to finish it")
        raise DataError(
            where, "there is no shard set here", "Run distsynth shard, or correct data.shards"
        )
    content = folder.read(MANIFEST)
    try:
        return _MANIFEST.validate_json(content)
    except ValidationError as error:
        found = {".".join(map(str, each["loc"])): each for each in error.errors()}
        # Of another version other fields differ too, and say less.
        name = "version" if "version" in found else next(iter(found))
        rule = f"not a valid manifest ({name}: {found[name]['msg']})"
        if name == "version":
            rule = (
                f"the shard set has format version {found[name]['input']}, this program reads "
                f"version {FORMAT_VERSION}"
            )
        raise DataError(where, rule, "Shard the cohort again") from error


def check_manifest(where: str, manifest: Manifest) -> None:
    """Refuse a manifest that contradicts itself.

    Raises:
        DataError: For a name that no specimen or shard can have, a specimen in two splits or with
            another count than its shards state, or one scan in two specimens.
    """
    problem = next(_contradictions(manifest), None)
    if problem:
        raise DataError(where, problem, "Shard the cohort again")
    check_no_leak(where, manifest)


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What is wrong with a manifest by itself."""
    specimens = {specimen.name: specimen for specimen in manifest.specimens}
    if len(specimens) < len(manifest.specimens):
        yield "a specimen is listed twice"
    names = manifest.contrasts
    if len(names) == 1 or len(set(names)) < len(names):
        yield f"contrasts must be none, or two or more of different names: {', '.join(names)}"
    count = manifest.contrast_count
    for row in manifest.specimens:
        if len(row.further) != count - 1:
            yield f"{row.name} has {len(row.further) + 1} contrasts, the set {count}"
    for name in specimens:
        if not SPECIMEN_NAME.fullmatch(name):
            yield f"not a name that a specimen can have: {name!r}"
    held = dict.fromkeys(specimens, 0)
    for shard in manifest.shards:
        match = SHARD_NAME.fullmatch(shard.name)
        if not match or match[1] != shard.split:
            yield f"not a name that a shard of {shard.split} can have: {shard.name!r}"
        if sum(span.patches for span in shard.spans) != shard.patches:
            yield f"{shard.name} states {shard.patches} patches, its spans others"
        for span in shard.spans:
            if span.specimen not in specimens:
                yield f"{shard.name} holds a specimen that is not listed: {span.specimen!r}"
                continue
            split = specimens[span.specimen].split
            if split != shard.split:
                yield f"{shard.name} holds {span.specimen}, which is a {split} specimen"
            held[span.specimen] += span.patches
    for name, count in held.items():
        if count != specimens[name].patches:
            yield f"{name} states {specimens[name].patches} patches, its shards {count}"


def shard_name(split: Split, index: int) -> str:
    """Stable name of a shard within its set."""
    return str(PurePosixPath(split) / f"{split}-{index:06d}.tar")


def mask_name(specimen: str, sha256: str) -> str:
    """Name of a specimen's mask within the set; another mask has another name."""
    return f"masks/{specimen}-{sha256[:8]}.npy"


def check_no_leak(where: str, manifest: Manifest) -> None:
    """Refuse a set in which two specimens hold the same scan.

    Raises:
        DataError: Names the two.
    """
    seen: dict[str, str] = {}
    for specimen in manifest.specimens:
        for digest in specimen.scans_sha256:
            owner = seen.setdefault(digest, specimen.name)
            if owner != specimen.name:
                raise DataError(
                    where,
                    f"{owner} and {specimen.name} hold the same scan: it would leak between splits",
                    "Remove one of the two from the cohort",
                )

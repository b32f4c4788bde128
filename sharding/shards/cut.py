"""Cutting one specimen: its patches as shard records, and its entry in the manifest.

What is cut depends on the specimen's files, its kind of patches and the configuration, and on
nothing else. Its key sums these up: a specimen whose key has not changed need not be cut again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from sharding.io.errors import DataError
from sharding.io.records import STRICT
from sharding.io.storage import Folder
from sharding.shards.config import ShardConfig
from sharding.shards.manifest import FORMAT_VERSION, ContrastRecord, SpecimenRecord, mask_name
from sharding.shards.patches import (
    cut,
    cut_channels,
    dense_locations,
    extend_volume,
    random_locations,
)
from sharding.shards.records import encode_mask, quantise, record_key, write_record
from sharding.volumes.cohort import Specimen, Split
from sharding.volumes.formats.registry import files_of
from sharding.volumes.intensities import fingerprint
from sharding.volumes.pair import Pair, prepare_pair, source_of
from sharding.volumes.profile import known_steps, profile_scan

PARTS = "parts"
"""Folder within an unfinished set for the records that are not packed into shards yet."""

KEY_FIELDS = {
    "train": ("patches_per_specimen", "axes", "foreground", "seed"),
    "val": ("stride", "dense_axes"),
    "test": ("stride", "dense_axes"),
}
COMMON_FIELDS = ("patch_size", "alignment", "neighbours", "block", "preprocess")
"""Fields of ShardConfig that every cut specimen depends on."""


@dataclass(frozen=True)
class CutTask:
    """One specimen to cut.

    Attributes:
        specimen: Its files.
        split: Decides what kind of patches are cut.
        folder: The shard set.
        config: What to cut.
        known: Key of the patches that the set already holds of this specimen, if any.
    """

    specimen: Specimen
    split: Split
    folder: Folder
    config: ShardConfig
    known: str | None = None


@dataclass(frozen=True)
class CutSpecimen:
    """A specimen that has been cut.

    Attributes:
        key: Sums up all that it depends on.
        specimen: Its entry in the manifest.
        records: Patches and bytes of each record, in order.
    """

    __pydantic_config__ = STRICT

    key: str
    specimen: SpecimenRecord
    records: tuple[tuple[int, int], ...]

    @cached_property
    def bytes(self) -> int:
        """Size of its file."""
        return sum(size for _, size in self.records)


_CUT_SPECIMEN = TypeAdapter(CutSpecimen)


def cut_specimen(task: CutTask) -> CutSpecimen | None:
    """Cut a specimen, unless this has been done.

    Memory holds one pair of volumes and one record.

    Returns:
        What was cut; None if the set's shards already hold these patches.

    Raises:
        DataError: If a file is bad, or a patch does not fit into the volume.
    """
    specimen, folder = task.specimen, task.folder
    inputs = inputs_sha256(specimen)
    key = part_key(specimen.name, task.split, inputs, task.config)
    if key == task.known:
        return None
    done = _finished(folder, specimen.name, key)
    if done:
        return done
    pair = prepare_pair(specimen, task.config.preprocess)
    try:
        locations = _locations(pair, task.split, task.config)
    except ValueError as error:
        raise DataError(
            str(specimen.target), str(error), "Choose a smaller patch, or other axes"
        ) from None
    # Removed first, because it does not describe the records that are written now.
    folder.remove(_record_file(specimen.name))
    records = write_records(folder, pair, locations, task.config)
    content = encode_mask(pair.mask)
    mask_sha256 = hashlib.sha256(content).hexdigest()
    folder.write(mask_name(specimen.name, mask_sha256), content)
    record = _describe(pair, task, len(locations), inputs, mask_sha256)
    done = CutSpecimen(key, record, records)
    # Written last, so that records with a description are complete.
    folder.write(_record_file(specimen.name), _CUT_SPECIMEN.dump_json(done).decode())
    return done


def part_file(name: str) -> str:
    """Name within the set of a specimen's records: a tar without its end."""
    return f"{PARTS}/specimens/{name}.tar"


def part_key(name: str, split: Split, inputs: str, config: ShardConfig) -> str:
    """sha256 of all that a cut specimen depends on.

    Validation and test specimens are cut alike, unless validation takes fewer slices.
    """
    fields = {field: getattr(config, field) for field in (*COMMON_FIELDS, *KEY_FIELDS[split])}
    fields["preprocess"] = asdict(config.preprocess)
    kind = "random" if split == "train" else "dense"
    slices = config.val_slices if split == "val" else 0
    stated = json.dumps([FORMAT_VERSION, name, kind, slices, inputs, fields], sort_keys=True)
    return hashlib.sha256(stated.encode()).hexdigest()


def inputs_sha256(specimen: Specimen) -> str:
    """sha256 over the checksums of a specimen's files, and the names of further contrasts.

    Raises:
        DataError: If one is missing.
    """
    digest = hashlib.sha256()
    transform = sorted(specimen.transform.iterdir()) if specimen.transform else []
    for path in (specimen.source, specimen.target, specimen.mask, specimen.native_source):
        if path is None:
            digest.update(b"-")
            continue
        for file in files_of(path):
            digest.update(_sha256(file))
    for path in transform:
        digest.update(_sha256(path))
    for each in specimen.further:
        digest.update(each.name.encode())
        for path in filter(None, (each.source, each.native_source)):
            for file in files_of(path):
                digest.update(_sha256(file))
    return digest.hexdigest()


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _finished(folder: Folder, name: str, key: str) -> CutSpecimen | None:
    """What an interrupted run cut, if it is complete and its key is the one wanted now."""
    if not folder.exists(_record_file(name)):
        return None
    try:
        part = _CUT_SPECIMEN.validate_json(folder.read(_record_file(name)))
    except ValidationError:
        return None
    mask = part.specimen.mask_sha256
    complete = folder.size(part_file(name)) == part.bytes
    complete &= folder.exists(mask_name(name, mask))
    return part if complete and part.key == key else None


def _record_file(name: str) -> str:
    return f"{PARTS}/specimens/{name}.json"


def _locations(pair: Pair, split: Split, config: ShardConfig) -> NDArray[np.int32]:
    """Random patches for training, the dense grid for validation and testing."""
    if split == "train":
        rng = np.random.default_rng([config.seed, *pair.name.encode()])
        return random_locations(
            pair.mask,
            config.patch_size,
            config.patches_per_specimen,
            config.axes,
            config.foreground,
            rng,
            config.alignment,
        )
    slices = config.val_slices if split == "val" else 0
    return dense_locations(
        pair.mask.shape,
        config.patch_size,
        config.stride,
        config.dense_axes,
        slices,
        config.alignment,
    )


def write_records(
    folder: Folder, pair: Pair, locations: NDArray[np.int32], config: ShardConfig
) -> tuple[tuple[int, int], ...]:
    """Write a specimen's records one after another.

    Returns:
        Patches and bytes of each record.
    """
    target, *sources = (
        extend_volume(quantise(scaled), config.alignment)
        for scaled in (
            pair.target_scaled,
            pair.source_scaled,
            *(each.scaled for each in pair.further),
        )
    )
    records = []
    # A tar without its end, because other records follow in a shard.
    with folder.writer(part_file(pair.name)) as path, path.open("wb") as file:
        for number, where in enumerate(_blocks(locations, config.block)):
            parts = [cut_channels(s, config.patch_size, where, config.neighbours) for s in sources]
            arrays = {
                "source": parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1),
                "target": cut(target, config.patch_size, where),
                "where": where,
            }
            size = write_record(file, record_key(pair.name, number), arrays)
            records.append((len(where), size))
    return tuple(records)


def _blocks(locations: NDArray[np.int32], size: int) -> Iterable[NDArray[np.int32]]:
    return (locations[low : low + size] for low in range(0, len(locations), size))


def _describe(
    pair: Pair, task: CutTask, patches: int, inputs: str, mask_sha256: str
) -> SpecimenRecord:
    specimen, profile = task.specimen, None
    if task.split == "train":
        scan = specimen.native_source or source_of(specimen)
        profile = profile_scan(pair.native_source, known_steps(scan))
    further = []
    for contrast, source in zip(specimen.further, pair.further, strict=True):
        own = None
        if task.split == "train":
            steps = known_steps(contrast.native_source or contrast.source)
            own = profile_scan(source.native, steps)
        further.append(ContrastRecord(source.transform, fingerprint(source.native), own))
    return SpecimenRecord(
        name=pair.name,
        split=task.split,
        shape=pair.grid.shape,
        spacing_mm=pair.grid.spacing_mm,
        orientation=pair.grid.orientation,
        patches=patches,
        overlap=pair.overlap,
        source=pair.source_transform,
        target=pair.target_transform,
        source_sha256=fingerprint(pair.native_source),
        target_sha256=fingerprint(pair.grid),
        inputs_sha256=inputs,
        mask_sha256=mask_sha256,
        profile=profile,
        further=tuple(further),
    )

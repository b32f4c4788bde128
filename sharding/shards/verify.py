"""Is a shard set what its manifest says? Everything is read and every fault is named."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sharding.io.errors import DataError
from sharding.io.progress import progress
from sharding.shards.manifest import MANIFEST, ShardRecord, SpecimenRecord, mask_name
from sharding.shards.patches import extent, patch_axes
from sharding.shards.records import Block
from sharding.shards.shard_set import ShardSet


def verify(shards: ShardSet) -> list[DataError]:
    """Check every checksum, count, split and specimen of a set.

    Args:
        shards: Opened: its manifest does not contradict itself.

    Returns:
        Every fault, named as an error with its place, rule and remedy; none if the set is sound.
    """
    faults = []
    records = shards.manifest.shards
    for shard in progress(records, "verifying shards", len(records)):
        try:
            shards.check_sum(shard)
            _check_places(shards, shard, shards.read(shard))
        except DataError as error:
            faults.append(error)
    for specimen in shards.manifest.specimens:
        if specimen.mask_sha256:
            try:
                shards.mask(specimen)
            except DataError as error:
                faults.append(error)
    return [*faults, *_strangers(shards)]


def _check_places(shards: ShardSet, shard: ShardRecord, blocks: list[Block]) -> None:
    """Refuse patches that do not lie within their specimen.

    Raises:
        DataError: Names the shard.
    """
    specimens = {row.name: row for row in shards.manifest.specimens}
    for block in blocks:
        if problem := _misplaced(shards, specimens[block.specimen], block):
            raise DataError(shards.folder / shard.name, problem, "Shard the cohort again")


def _misplaced(shards: ShardSet, specimen: SpecimenRecord, block: Block) -> str | None:
    config = shards.manifest.config
    axes = config.axes if specimen.split == "train" else config.dense_axes
    for axis in np.unique(block.where[:, 0]).tolist():
        if axis not in patch_axes(config.patch_size, axes):
            return f"holds patches of {specimen.name} cut along axis {axis}, which is none of them"
        corners = block.where[block.where[:, 0] == axis, 1:]
        ends = corners + extent(config.patch_size, axis)
        if corners.min() < 0 or (ends > specimen.shape).any():
            return f"holds a patch that lies outside {specimen.name}"
    return None


def _strangers(shards: ShardSet) -> Iterator[DataError]:
    """Files that the manifest does not name: another program, or another run, wrote here."""
    manifest = shards.manifest
    known = {MANIFEST, *(shard.name for shard in manifest.shards)}
    known |= {mask_name(row.name, row.mask_sha256) for row in manifest.specimens if row.mask_sha256}
    for name in shards.folder.names():
        if name not in known:
            rule = "the manifest does not name this file"
            yield DataError(shards.folder / name, rule, "Remove it, if nothing else needs it")

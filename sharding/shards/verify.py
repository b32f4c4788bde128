"""Verification of a shard set: everything is read, and every fault is named."""

from __future__ import annotations

from collections.abc import Iterator

from sharding.io.errors import DataError
from sharding.io.progress import progress
from sharding.shards.manifest import MANIFEST, mask_name
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
            shards.read(shard)
        except DataError as error:
            faults.append(error)
    for specimen in shards.manifest.specimens:
        try:
            shards.mask(specimen)
        except DataError as error:
            faults.append(error)
    return [*faults, *_unlisted_files(shards)]


def _unlisted_files(shards: ShardSet) -> Iterator[DataError]:
    """Faults of files that the manifest does not list, which something else wrote."""
    manifest = shards.manifest
    known = {MANIFEST, *(shard.name for shard in manifest.shards)}
    known |= {mask_name(row.name, row.mask_sha256) for row in manifest.specimens}
    for name in shards.folder.names():
        if name not in known:
            rule = "the manifest does not name this file"
            yield DataError(shards.folder / name, rule, "Remove it, if nothing else needs it")

"""A shard set opened for reading."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharding.io.cache import Cache
from sharding.io.errors import DataError, file_errors
from sharding.io.storage import Folder
from sharding.shards.manifest import (
    MANIFEST,
    ShardRecord,
    SpecimenRecord,
    check_manifest,
    mask_name,
    read_manifest,
)
from sharding.shards.patches import extended, extent, patch_axes
from sharding.shards.records import Block, read_blocks
from sharding.volumes.cohort import SPLITS, Split


class ShardSet:
    """A shard set opened for reading.

    Opening checks the manifest and, of a local set, the size of every shard; `check_sums` and
    sharding.shards.verify check the content. Shards of a remote set are fetched when they are
    read, into a cache, and their content is checked on arrival.
    """

    def __init__(
        self, folder: str | Path, cache: Cache | None = None, check_sizes: bool = True
    ) -> None:
        self.folder = Folder(folder, cache)
        self.manifest = read_manifest(self.folder)
        check_manifest(self.folder / MANIFEST, self.manifest)
        if self.folder.local and check_sizes:
            for shard in self.manifest.shards:
                self.path(shard)

    def shards(self, split: Split) -> list[ShardRecord]:
        """The shards of a split, in order."""
        return [shard for shard in self.manifest.shards if shard.split == split]

    def path(self, shard: ShardRecord) -> Path:
        """A local path of a shard, to be opened at once.

        Raises:
            DataError: If it is missing or not of its size, or arrives with a wrong checksum.
        """
        return self.folder.fetch(shard.name, shard.sha256, shard.bytes)

    def mask(self, specimen: SpecimenRecord) -> NDArray[np.bool_]:
        """Foreground of a specimen on the target grid, shape (x, y, z).

        Raises:
            DataError: If its file is missing or not as it was written.
        """
        count = int(np.prod(specimen.shape))
        bits = np.unpackbits(self.mask_bits(specimen), count=count)
        return bits.reshape(specimen.shape).astype(bool)

    def mask_bits(self, specimen: SpecimenRecord) -> NDArray[np.uint8]:
        """The same as it is stored: eight voxels a byte, the first one in the highest bit.

        Raises:
            DataError: As `mask` does.
        """
        name = mask_name(specimen.name, specimen.mask_sha256)
        content = self.folder.read(name) if self.folder.exists(name) else b""
        if hashlib.sha256(content).hexdigest() != specimen.mask_sha256:
            raise DataError(
                self.folder / name,
                "the mask is missing or its checksum is not the manifest's",
                "Copy it again or shard the cohort again",
            )
        return np.load(io.BytesIO(content), allow_pickle=False)

    def check_sum(self, shard: ShardRecord) -> None:
        """Check the sha256 of a shard (about 1 GB/s).

        Raises:
            DataError: If it is not as it was written.
        """
        with file_errors(self.folder / shard.name), self.path(shard).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.sha256:
            raise DataError(
                self.folder / shard.name,
                "the shard's checksum is not the manifest's: changed after writing",
                "Copy it again or shard the cohort again",
            )

    def check_sums(self, *splits: Split) -> None:
        """Check every shard of the splits; those of a remote set are checked on arrival instead.

        Raises:
            DataError: If a shard is not as it was written.
        """
        for shard in self.manifest.shards:
            if self.folder.local and shard.split in (splits or SPLITS):
                self.check_sum(shard)

    def read(self, shard: ShardRecord) -> list[Block]:
        """Map a shard into memory; nothing is copied.

        Raises:
            DataError: If the tar does not follow the schema, holds other patches than the manifest
                says, or patches that lie outside their specimen.
        """
        where = self.folder / shard.name
        try:
            with file_errors(where):
                manifest = self.manifest
                blocks = read_blocks(self.path(shard), manifest.config, manifest.channels)
        except (tarfile.TarError, ValueError, KeyError, EOFError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                where, f"not a shard of this format ({error})", "Shard the cohort again"
            ) from error
        found: dict[str, int] = {}
        for block in blocks:
            found[block.specimen] = found.get(block.specimen, 0) + len(block.where)
        stated = {span.specimen: span.patches for span in shard.spans}
        if found != stated:
            raise DataError(
                where,
                f"the shard must hold these patches of each specimen: {stated}, found {found}",
                "Copy it again or shard the cohort again",
            )
        specimens = {row.name: row for row in self.manifest.specimens}
        for block in blocks:
            if problem := self._misplaced(specimens[block.specimen], block):
                raise DataError(where, problem, "Shard the cohort again")
        return blocks

    def _misplaced(self, specimen: SpecimenRecord, block: Block) -> str | None:
        """What is wrong with the places of a block's patches, if anything."""
        config = self.manifest.config
        axes = config.axes if specimen.split == "train" else config.dense_axes
        shape = extended(specimen.shape, config.alignment)
        for axis in np.unique(block.where[:, 0]).tolist():
            if axis not in patch_axes(config.patch_size, axes):
                return (
                    f"holds patches of {specimen.name} cut along axis {axis}, which is none of them"
                )
            corners = block.where[block.where[:, 0] == axis, 1:]
            ends = corners.astype(np.int64) + extent(config.patch_size, axis)
            if corners.min() < 0 or (ends > shape).any():
                return f"holds a patch that lies outside {specimen.name}"
        return None

"""Patches as they are stored: gathered from mapped shards, or kept in the memory of a device."""

from __future__ import annotations

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sharding.shards.records import Block
from sharding.shards.shard_set import ShardSet
from sharding.volumes.cohort import Split

OPEN_SHARDS = 128
"""Most shards that one process keeps mapped: far below the usual limit of open files."""
CPU = torch.device("cpu")


class Batch(NamedTuple):
    """Patches as stored.

    Attributes:
        source: uint16, shape (n, channels, *patch_size).
        target: uint16, shape (n, 1, *patch_size).
        where: int32, shape (n, 5): specimen index in the manifest, axis, corner.
    """

    source: Tensor
    target: Tensor
    where: Tensor


class PatchDataset(Dataset[Batch]):
    """The patches of a split; an index is an array of patch numbers and gives a whole batch."""

    def __init__(self, shards: ShardSet, split: Split) -> None:
        self.shards = shards
        self.records = shards.shards(split)
        self.starts = np.concatenate([[0], np.cumsum([shard.patches for shard in self.records])])
        self._numbers = {row.name: index for index, row in enumerate(shards.manifest.specimens)}
        self._mapped: OrderedDict[int, _Mapped] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, object]:
        # Mapped files are not pickled; a worker process maps its own.
        return {**self.__dict__, "_mapped": OrderedDict()}

    def __getitem__(self, index: NDArray[np.int64]) -> Batch:
        batch = self.empty(len(index))
        source, target, where = (part.numpy() for part in batch)
        shards = np.searchsorted(self.starts, index, side="right") - 1
        offsets = (index - self.starts[shards]).tolist()
        # A shuffled batch takes about one patch of a record: nothing is gained by grouping them.
        for row, (number, offset) in enumerate(zip(shards.tolist(), offsets, strict=True)):
            shard = self._map(number)
            record = bisect.bisect_right(shard.starts, offset) - 1
            block, patch = shard.blocks[record], offset - shard.starts[record]
            source[row] = block.source[patch]
            target[row, 0] = block.target[patch]
            where[row] = shard.where[offset]
        return batch

    def where(self, index: NDArray[np.int64]) -> NDArray[np.int32]:
        """Specimen index, axis and corner of patches by their numbers, shape (n, 5)."""
        shards = np.searchsorted(self.starts, index, side="right") - 1
        rows = [
            self._map(number).where[offset]
            for number, offset in zip(
                shards.tolist(), (index - self.starts[shards]).tolist(), strict=True
            )
        ]
        return np.array(rows, np.int32).reshape(-1, 5)

    @property
    def bytes(self) -> int:
        """Bytes that all patches take in memory."""
        return len(self) * sum(part.nbytes for part in self.empty(1))

    def empty(self, count: int, device: torch.device = CPU) -> Batch:
        """Empty arrays for some patches."""
        manifest = self.shards.manifest
        config = manifest.config

        def part(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.empty((count, *shape), dtype=dtype, device=device)

        return Batch(
            source=part(torch.uint16, manifest.channels, *config.patch_size),
            target=part(torch.uint16, 1, *config.patch_size),
            where=part(torch.int32, 5),
        )

    def records_in_order(self) -> Iterator[tuple[NDArray[Any], ...]]:
        """Source, target and where of all patches, mapped, a record at a time.

        Each shard is opened once and closed again.
        """
        for shard in self.records:
            for block in self.shards.read(shard):
                yield block.source, block.target[:, None], self._where(block)

    def _map(self, number: int) -> _Mapped:
        """A shard by its number in the split."""
        mapped = self._mapped.get(number)
        if mapped is None:
            blocks = self.shards.read(self.records[number])
            starts = [0, *itertools.accumulate(len(block.where) for block in blocks)]
            where = np.concatenate([self._where(block) for block in blocks])
            mapped = self._mapped[number] = _Mapped(blocks, starts, where)
            if len(self._mapped) > OPEN_SHARDS:
                self._mapped.popitem(last=False)
        return mapped

    def _where(self, block: Block) -> NDArray[np.int32]:
        """Specimen index, axis and corner of each patch of a record, shape (n, 5)."""
        return np.insert(block.where, 0, self._numbers[block.specimen], axis=1)


class _Mapped(NamedTuple):
    """A shard's records, the place of each one's first patch, and where all patches lie."""

    blocks: list[Block]
    starts: list[int]
    where: NDArray[np.int32]


class ResidentPatches:
    """All patches of a split in the memory of a device, as they are stored."""

    def __init__(self, dataset: PatchDataset, device: torch.device) -> None:
        self._patches = dataset.empty(len(dataset), device)
        first = 0
        for record in dataset.records_in_order():
            last = first + len(record[0])
            for part, rows in zip(self._patches, record, strict=True):
                _copy(rows, part[first:last])
            first = last

    def batches(self, plan: NDArray[np.int64]) -> Iterator[Batch]:
        """The batches of a plan, shape (steps, n), on the device."""
        source, target, where = self._patches
        # Not every device can select rows of uint16; the bits are the same.
        source, target = source.view(torch.int16), target.view(torch.int16)
        for rows in torch.from_numpy(np.ascontiguousarray(plan)).to(where.device):
            yield Batch(
                source.index_select(0, rows).view(torch.uint16),
                target.index_select(0, rows).view(torch.uint16),
                where.index_select(0, rows),
            )


def _copy(rows: NDArray[Any], part: Tensor) -> None:
    """Copy an array, which may be mapped, into a tensor on any device."""
    if part.device.type == "cpu":
        part.numpy()[...] = rows
    else:
        # Copied first, because a tensor cannot use a file that is mapped read-only.
        part.copy_(torch.from_numpy(rows.copy()))

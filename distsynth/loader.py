"""Shards to batches, by an explicit plan of (epoch, rank).

The plan is arithmetic on patch numbers and knows nothing of workers: one permutation of the whole
split a seed and epoch, cut into global batches, of which each rank takes its share. So every rank
has the same number of batches, no patch is read twice in an epoch, what does not fill a global
batch is left out (other patches each epoch), and the global batches are the same for any number
of ranks, workers and shards read at once. Workers only fetch what the plan says.
"""

from __future__ import annotations

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distsynth.config import ConfigError, DataConfig
from sharding.cohort import Split
from sharding.shards import QUANTUM, Block, Manifest, ShardSet

OPEN_SHARDS = 128
"""Shards that one process keeps mapped: far below the usual limit of open files."""


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


def epoch_order(
    shard_patches: Sequence[int], seed: int, epoch: int, window: int
) -> NDArray[np.int64]:
    """The order of a split's patches in one epoch: a function of its arguments alone.

    Shards are permuted, then patches within each window of shards, so that a split larger than
    memory is still read one window at a time.

    Args:
        shard_patches: Patches in each shard.
        seed: Of the run.
        epoch: From 0; each gives another order.
        window: Shards whose patches are mixed.

    Returns:
        Every patch number from 0 to the sum of `shard_patches`, once.
    """
    rng = np.random.default_rng([seed, epoch])
    starts = [0, *np.cumsum(shard_patches).tolist()]
    shards = rng.permutation(len(shard_patches)).tolist()
    chunks = [
        rng.permutation(
            np.concatenate(
                [
                    np.arange(starts[shard], starts[shard + 1])
                    for shard in shards[low : low + window]
                ]
            )
        )
        for low in range(0, len(shards), window)
    ]
    return np.concatenate(chunks)


def training_plan(
    order: NDArray[np.int64], batch_size: int, rank: int, ranks: int
) -> NDArray[np.int64]:
    """One rank's share of every full global batch.

    Args:
        order: From epoch_order.
        batch_size: Patches a step over all ranks.
        rank: 0 to ranks - 1.
        ranks: Must divide batch_size.

    Returns:
        Patch numbers, shape (steps, batch_size / ranks).
    """
    steps = len(order) // batch_size
    share = batch_size // ranks
    batches = order[: steps * batch_size].reshape(steps, batch_size)
    return batches[:, rank * share : (rank + 1) * share]


def exact_plan(count: int, batch_size: int, rank: int, ranks: int) -> list[NDArray[np.int64]]:
    """One rank's run of patches 0 to count - 1, each on exactly one rank; the last is short."""
    own = np.array_split(np.arange(count), ranks)[rank]
    return [own[low : low + batch_size] for low in range(0, len(own), batch_size)]


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
        # Mapped files stay behind; a worker process maps its own.
        return {**self.__dict__, "_mapped": OrderedDict()}

    def __getitem__(self, index: NDArray[np.int64]) -> Batch:
        config = self.shards.manifest.config
        source = np.empty((len(index), config.channels, *config.patch_size), np.uint16)
        target = np.empty((len(index), 1, *config.patch_size), np.uint16)
        where = np.empty((len(index), 5), np.int32)
        shards = np.searchsorted(self.starts, index, side="right") - 1
        for row, (patch, shard) in enumerate(zip(index.tolist(), shards.tolist(), strict=True)):
            block, offset = self._locate(shard, patch - int(self.starts[shard]))
            source[row] = block.source[offset]
            target[row, 0] = block.target[offset]
            where[row, 0] = self._numbers[block.specimen]
            where[row, 1:] = block.where[offset]
        return Batch(*(torch.from_numpy(array) for array in (source, target, where)))

    def _locate(self, shard: int, offset: int) -> tuple[Block, int]:
        mapped = self._mapped.get(shard)
        if mapped is None:
            blocks = self.shards.read(self.records[shard])
            ends = list(itertools.accumulate(len(block.where) for block in blocks))
            mapped = self._mapped[shard] = _Mapped(blocks, ends)
            if len(self._mapped) > OPEN_SHARDS:
                self._mapped.popitem(last=False)
        number = bisect.bisect_right(mapped.ends, offset)
        block = mapped.blocks[number]
        return block, offset - (mapped.ends[number] - len(block.where))


class _Mapped(NamedTuple):
    """A shard's records, and how many patches lie in each and those before it."""

    blocks: list[Block]
    ends: list[int]


class TrainingBatches:
    """The training split, epoch by epoch, for one rank.

    Raises:
        ConfigError: If the ranks do not divide the batch, or a batch needs more than there is.
    """

    def __init__(
        self,
        shards: ShardSet,
        config: DataConfig,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        pin_memory: bool = False,
    ) -> None:
        dataset = PatchDataset(shards, "train")
        if batch_size % ranks:
            raise ConfigError(
                f"train.batch_size must be divisible by the {ranks} ranks, got {batch_size}"
            )
        _check_cache(shards, dataset, config)
        if len(dataset) < batch_size:
            raise ConfigError(
                f"train.batch_size must be <= the {len(dataset)} training patches of "
                f"{shards.folder.url}, got {batch_size}: use fewer ranks, a smaller batch or "
                "more data"
            )
        self._counts = [shard.patches for shard in dataset.records]
        self._window = config.shuffle_shards
        self._batch_size, self._seed, self._rank, self._ranks = batch_size, seed, rank, ranks
        self.steps = len(dataset) // batch_size
        self._plan: list[NDArray[np.int64]] = []
        self._loader = _loader(dataset, self._plan, config.workers, pin_memory, persistent=True)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch, from step `start` on; skipping costs nothing."""
        order = epoch_order(self._counts, self._seed, epoch, self._window)
        plan = training_plan(order, self._batch_size, self._rank, self._ranks)
        self._plan[:] = list(plan[start:])
        yield from self._loader


def judging_batches(
    shards: ShardSet,
    split: Split,
    patches: NDArray[np.int64],
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """Chosen patches of a split, by their numbers, each on exactly one rank, in order."""
    plan = [patches[index] for index in exact_plan(len(patches), batch_size, rank, ranks)]
    yield from _loader(PatchDataset(shards, split), plan, workers, pin_memory=False)


class Standardiser:
    """Stored intensities to standardised ones, on the device (section 5.2)."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        def column(which: str, value: str) -> Tensor:
            values = [getattr(getattr(row, which), value) for row in manifest.specimens]
            return torch.tensor(values, dtype=torch.float32, device=device)

        self._device = device
        self._mean = {which: column(which, "mean") for which in ("source", "target")}
        self._std = {which: column(which, "std") for which in ("source", "target")}

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Source and target as float32, zero mean and unit variance; shapes as in Batch."""
        specimen = batch.where[:, 0].to(self._device, torch.int64, non_blocking=True)
        shape = (-1,) + (1,) * (batch.source.dim() - 1)

        def standardise(patches: Tensor, which: str) -> Tensor:
            scaled = patches.to(self._device, non_blocking=True).to(torch.float32) / QUANTUM
            mean, std = self._mean[which][specimen], self._std[which][specimen]
            return (scaled - mean.view(shape)) / std.view(shape)

        return standardise(batch.source, "source"), standardise(batch.target, "target")


def _check_cache(shards: ShardSet, dataset: PatchDataset, config: DataConfig) -> None:
    """The shards that are shuffled together must fit into the cache, or each is fetched often."""
    sizes = sorted((shard.bytes for shard in dataset.records), reverse=True)
    needed = sum(sizes[: config.shuffle_shards]) / 1e9
    if shards.folder.local is None and needed > config.cache_gb:
        raise ConfigError(
            f"data.cache_gb must be >= {needed:.3g}, the size of {config.shuffle_shards} shards of "
            f"{shards.folder.url} that are shuffled together, got {config.cache_gb}: allow more "
            "space or lower data.shuffle_shards"
        )


def _loader(
    dataset: PatchDataset,
    plan: list[NDArray[np.int64]],
    workers: int,
    pin_memory: bool,
    persistent: bool = False,
) -> DataLoader[Batch]:
    return DataLoader(
        dataset,
        sampler=plan,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        pin_memory=pin_memory,
        # One of its own, so that iterating does not draw from the global random state.
        generator=torch.Generator(),
    )

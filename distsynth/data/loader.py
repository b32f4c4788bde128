"""Shards to batches, by an explicit plan of (epoch, rank).

The plan is arithmetic on patch numbers and knows nothing of workers: one permutation of the whole
split a seed and epoch, cut into global batches, of which each rank takes its share. So every rank
has the same number of batches, no patch is read twice in an epoch, what does not fill a global
batch is left out (other patches each epoch), and the global batches are the same for any number
of ranks, workers and shards read at once. Workers only fetch what the plan says.

Where the training split fits into the memory of the device (see distsynth.data.memory) it is read
once, shard after shard, and every batch is then a selection of rows there: the same patches in
the same order. Where it does not, batches are read from the mapped shards as they are needed.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from distsynth.config import DataConfig
from distsynth.data.dataset import CPU, Batch, PatchDataset, ResidentPatches
from distsynth.data.memory import keepable_bytes
from distsynth.errors import ConfigError
from sharding.shards.shard_set import ShardSet
from sharding.volumes.cohort import Split


@dataclass(frozen=True)
class Rank:
    """One of the processes that train together.

    Attributes:
        number: From 0 to `count` - 1.
        count: How many train together.
        device: Where this one computes.
    """

    number: int = 0
    count: int = 1
    device: torch.device = CPU

    @classmethod
    def of(cls, accelerator: Accelerator) -> Rank:
        """This process, as Accelerate sees it."""
        return cls(accelerator.process_index, accelerator.num_processes, accelerator.device)


ALONE = Rank()
"""A process that trains by itself, on the CPU."""


def epoch_order(
    shard_patches: Sequence[int], seed: int, epoch: int, window: int
) -> NDArray[np.int64]:
    """The order of a split's patches in one epoch: a function of its arguments alone.

    Shards are permuted, then patches within each window of shards, so that a split larger than
    memory is still read one window at a time.

    Args:
        shard_patches: Patches in each shard.
        seed: The seed of the run.
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


class TrainingBatches:
    """The training split, epoch by epoch, for one rank.

    A split that fits is read into the memory of the device at the start of the first epoch, and
    stays there. It fits if it takes no more than `keepable_bytes`: half of a GPU's free memory, or
    a quarter of a rank's share of what its host has available. Every rank keeps the whole split,
    for each epoch gives it other patches.

    Args:
        shards: The set.
        config: How it is read.
        batch_size: Patches a step over all ranks.
        seed: The seed of the run.
        rank: This process.

    Attributes:
        steps: Batches an epoch.
        resident: Whether the split is kept in memory; its batches then lie on the device.

    Raises:
        ConfigError: If the ranks do not divide the batch, or a batch needs more than there is.
    """

    def __init__(
        self,
        shards: ShardSet,
        config: DataConfig,
        batch_size: int,
        seed: int,
        rank: Rank = ALONE,
    ) -> None:
        self._dataset = dataset = PatchDataset(shards, "train")
        check_batch(len(dataset), batch_size, rank.count, shards.folder.url)
        _check_cache(shards, dataset, config)
        self._counts = [shard.patches for shard in dataset.records]
        self._window = config.shuffle_shards
        self._batch_size, self._seed, self._rank = batch_size, seed, rank
        self.steps = len(dataset) // batch_size
        self._plan: list[NDArray[np.int64]] = []
        pinned = rank.device.type == "cuda"
        self._loader = _loader(dataset, self._plan, config.workers, pinned, persistent=True)
        fits = dataset.bytes <= keepable_bytes(rank.device, rank.count)
        self.resident = config.resident == "auto" and fits
        self._patches: ResidentPatches | None = None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch, from step `start` on; skipping costs nothing.

        A split that stays in memory has been read when this returns, so that no step waits for it.
        """
        order = epoch_order(self._counts, self._seed, epoch, self._window)
        plan = training_plan(order, self._batch_size, self._rank.number, self._rank.count)[start:]
        if self.resident:
            if self._patches is None:
                self._patches = ResidentPatches(self._dataset, self._rank.device)
            return self._patches.batches(plan)
        self._plan[:] = list(plan)
        return iter(self._loader)


def validation_batches(
    shards: ShardSet,
    split: Split,
    patches: NDArray[np.int64],
    batch_size: int,
    workers: int = 0,
    rank: Rank = ALONE,
) -> Iterator[Batch]:
    """Chosen patches of a split, by their numbers, each on exactly one rank, in order."""
    own = exact_plan(len(patches), batch_size, rank.number, rank.count)
    plan = [patches[index] for index in own]
    yield from _loader(PatchDataset(shards, split), plan, workers, pin_memory=False)


def check_batch(patches: int, batch_size: int, ranks: int, shards: str) -> None:
    """Refuse a batch that the ranks cannot share, or that is larger than the training split.

    Raises:
        ConfigError: Names the field, the rule and the value.
    """
    if batch_size % ranks:
        raise ConfigError(
            f"train.batch_size must be divisible by the {ranks} ranks, got {batch_size}"
        )
    if patches < batch_size:
        raise ConfigError(
            f"train.batch_size must be <= the {patches} training patches of {shards}, got "
            f"{batch_size}: use a smaller batch or more data"
        )


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
    context = None
    if workers:
        # A process of its own forks them, which has no threads: a fork of one that has, W&B's or a
        # storage's, may wait for ever for a lock that a thread held.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([PatchDataset.__module__])
    return DataLoader(
        dataset,
        sampler=plan,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=persistent and workers > 0,
        pin_memory=pin_memory,
        # One of its own, so that iterating does not draw from the global random state.
        generator=torch.Generator(),
    )

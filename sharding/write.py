"""From a cohort to a shard set: specimens in parallel, patches mixed, everything atomic.

Each specimen is read once and its patches go to a part file of plain arrays; the shards are then
gathered from the mapped parts in a seeded order. So memory holds one volume a process and one
shard, whatever the cohort, and the same inputs and seed give the same bytes.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharding.atomic import atomic_folder, atomic_write
from sharding.cohort import SPLITS, Specimen, Split, assign_splits
from sharding.errors import DataError
from sharding.patches import cut, dense_locations, random_locations
from sharding.preprocess import Pair, fingerprint, prepare_pair
from sharding.progress import progress
from sharding.shards import (
    ARRAYS,
    MANIFEST,
    Block,
    Manifest,
    ShardConfig,
    ShardRecord,
    SpecimenRecord,
    check_no_leak,
    encode_mask,
    mask_name,
    quantise,
    record,
    shard_name,
)


@dataclass(frozen=True)
class _Task:
    """One specimen to cut: its index in the manifest, files, split and part folder."""

    index: int
    specimen: Specimen
    split: Split
    folder: Path


def write_shards(
    specimens: Sequence[Specimen],
    out: Path,
    config: ShardConfig,
    workers: int = 0,
    overwrite: bool = False,
) -> Manifest:
    """Cut a cohort into a shard set.

    Args:
        specimens: The cohort, with sources.
        out: Folder of the set; appears, whole, in one rename.
        config: What to cut and how to pack it.
        workers: Processes; 0 takes one a core.
        overwrite: Replace an existing set; a folder that is no shard set is never replaced.

    Returns:
        The manifest that was written.

    Raises:
        DataError: If `out` exists, a specimen is bad, or two specimens hold the same scan. What
            was written until then is removed.
    """
    splits = assign_splits(specimens, config.fractions, config.seed)
    with atomic_folder(out, MANIFEST, overwrite) as folder:
        parts = folder / "parts"
        parts.mkdir()
        tasks = [
            _Task(index, specimen, splits[specimen.name], parts / f"{index:06d}")
            for index, specimen in enumerate(specimens)
        ]
        records = tuple(_cut_specimens(tasks, config, workers))
        _check_one_orientation(records)
        shards = tuple(
            shard
            for split in SPLITS
            for shard in _pack_split(
                split, [task for task in tasks if task.split == split], folder, config
            )
        )
        (folder / "masks").mkdir()
        for task in tasks:
            if task.split != "train":
                (task.folder / "mask.npy").replace(folder / mask_name(task.specimen.name))
        shutil.rmtree(parts)
        manifest = Manifest(config, records, shards)
        check_no_leak(out, manifest)
        atomic_write(folder / MANIFEST, manifest.to_json())
    return manifest


def _cut_specimens(
    tasks: Sequence[_Task], config: ShardConfig, workers: int
) -> Iterator[SpecimenRecord]:
    """Cut every specimen, in processes of their own where there is more than one worker."""
    cut_one = partial(_cut_specimen, config=config)
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    if workers == 1:
        yield from progress(map(cut_one, tasks), "cutting patches", len(tasks))
        return
    # Spawned, so that the threads of the calling process cannot be caught mid-lock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield from progress(pool.map(cut_one, tasks), "cutting patches", len(tasks))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _cut_specimen(task: _Task, config: ShardConfig) -> SpecimenRecord:
    """Write one specimen's patches as plain arrays; return its line of the manifest."""
    pair = prepare_pair(task.specimen, config.preprocess)
    try:
        locations = _locations(pair, task.split, config)
    except ValueError as error:
        raise DataError(
            str(task.specimen.target), str(error), "Choose a smaller patch, or other axes"
        ) from None
    task.folder.mkdir()
    index = np.full((len(locations), 1), task.index, np.int32)
    block = Block(
        source=cut(quantise(pair.source_scaled), config.patch_size, locations),
        target=cut(quantise(pair.target_scaled), config.patch_size, locations),
        where=np.hstack([index, locations]),
    )
    for name in ARRAYS:
        np.save(task.folder / f"{name}.npy", getattr(block, name), allow_pickle=False)
    mask_sha256 = None
    if task.split != "train":
        content = encode_mask(pair.mask)
        (task.folder / "mask.npy").write_bytes(content)
        mask_sha256 = hashlib.sha256(content).hexdigest()
    return SpecimenRecord(
        name=pair.name,
        split=task.split,
        shape=pair.grid.shape,
        spacing_mm=pair.grid.spacing_mm,
        orientation=pair.grid.orientation,
        patches=len(locations),
        overlap=pair.overlap,
        source=pair.source_transform,
        target=pair.target_transform,
        source_sha256=fingerprint(pair.native_source),
        target_sha256=fingerprint(pair.grid),
        mask_sha256=mask_sha256,
    )


def _check_one_orientation(records: Sequence[SpecimenRecord]) -> None:
    """Slicing axes mean the same in every volume only if all point the same way."""
    first = records[0]
    for row in records:
        if row.orientation != first.orientation:
            raise DataError(
                row.name,
                f"targets must share one orientation: {first.name} is {first.orientation}, this "
                f"one is {row.orientation}",
                "Reorient the volumes to one convention, such as RAS",
            )


def _locations(pair: Pair, split: Split, config: ShardConfig) -> NDArray[np.int32]:
    """Random patches for training, the dense grid for judging."""
    if split == "train":
        rng = np.random.default_rng([config.seed, *pair.name.encode()])
        return random_locations(
            pair.mask,
            config.patch_size,
            config.patches_per_specimen,
            config.axes,
            config.foreground,
            rng,
        )
    slices = config.val_slices if split == "val" else 0
    return dense_locations(
        pair.mask.shape, config.patch_size, config.stride, config.dense_axes, slices
    )


def _pack_split(
    split: Split, tasks: Sequence[_Task], folder: Path, config: ShardConfig
) -> Iterator[ShardRecord]:
    """Gather the parts of a split into shards: mixed for training, in order for judging."""
    parts = [
        Block(*(np.load(task.folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS))
        for task in tasks
    ]
    counts = [len(part.where) for part in parts]
    order = np.column_stack(
        [
            np.repeat(np.arange(len(parts)), counts),
            np.concatenate([np.arange(count) for count in counts]),
        ]
    )
    if split == "train":
        order = np.random.default_rng([config.seed, 64]).permutation(order)
    (folder / split).mkdir()
    size = max(1, int(config.shard_mb * 2**20 / (config.patch_bytes * config.block))) * config.block
    starts = range(0, len(order), size)
    for index, start in enumerate(progress(starts, f"packing {split} shards", len(starts))):
        yield _write_shard(split, index, order[start : start + size], parts, folder, config.block)


def _write_shard(
    split: Split,
    index: int,
    order: NDArray[np.int64],
    parts: Sequence[Block],
    folder: Path,
    block: int,
) -> ShardRecord:
    """Write one tar; fixed owner and time stamps, so that its bytes depend on the patches only."""
    # Imported here: it loads torch, which the processes that cut patches can do without.
    from webdataset.writer import TarWriter

    name = shard_name(split, index)
    path = folder / name
    with path.open("wb") as file:
        writer = TarWriter(file, user="distsynth", group="distsynth", mtime=0)
        for number, start in enumerate(range(0, len(order), block)):
            key = f"{split}-{index:06d}-{number:04d}"
            writer.write(record(key, _gather(parts, order[start : start + block])))
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardRecord(name, split, len(order), path.stat().st_size, digest)


def _gather(parts: Sequence[Block], rows: NDArray[np.int64]) -> Block:
    """Copy patches, given as (part, row), out of the mapped parts."""
    return Block(
        **{
            name: np.stack([getattr(parts[part], name)[row] for part, row in rows.tolist()])
            for name in ARRAYS
        }
    )

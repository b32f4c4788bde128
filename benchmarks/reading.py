"""Patches a second from the disk to standardised float32 batches on the device, beside others.

    python -m benchmarks.reading [--quick] [--repeats N]

Pairs of 64x64 patches of phantoms, 32 a batch. The ways take turns, so that what else the machine
does falls on all of them. `ours, first epoch` opens the set and reads it into memory, `resident`
are the epochs after; `streaming` is what a set too large for the memory gets. The two gathers are
what plain numpy makes of the same patches, from a mapped file and from memory, in our batches and
standardised alike: the limit. Peers that are not installed are left out: pip install monai torchio.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.reading_peers import (
    BATCH,
    Arrays,
    Pairs,
    monai,
    torchio,
    webdataset,
    write_tars,
    write_volumes,
)
from distsynth.config import DataConfig
from distsynth.data.loader import Batch, PatchDataset, Rank, TrainingBatches
from distsynth.data.memory import keep_freed_memory
from distsynth.data.standardiser import Standardiser
from sharding.shards.config import ShardConfig
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import read_cohort
from sharding.volumes.pair import prepare_pair

SIZE = 64
RESIDENT, LIMIT = "ours, resident", "gather from memory (the limit)"
Way = Callable[[], Pairs]


def make_set(folder: Path, patches: int) -> ShardSet:
    """Shards of four training phantoms."""
    cohort = write_phantom_cohort(folder / "cohort", specimens=6, shape=(96, 96, 80))
    config = ShardConfig(patches_per_specimen=patches // 4, val_slices=1)
    write_shards(read_cohort(cohort), folder / "shards", config, workers=1)
    return ShardSet(folder / "shards")


def ours(shards: ShardSet, config: DataConfig, device: torch.device) -> Way:
    """Epoch after epoch of the training loader."""
    standardise = Standardiser(shards.manifest, device)
    batches = TrainingBatches(shards, config, BATCH, seed=0, rank=Rank(device=device))
    numbers = iter(range(10**9))
    return lambda: map(standardise, batches.epoch(next(numbers)))


def first_epoch(shards: ShardSet, device: torch.device) -> Pairs:
    """The set opened anew and read for the first time."""
    return ours(ShardSet(shards.folder.url), DataConfig(), device)()


def gather(patches: Arrays, standardise: Standardiser) -> Way:
    """Rows of arrays in a random order."""
    rng = np.random.default_rng(0)

    def epoch() -> Pairs:
        order = rng.permutation(len(patches[0]))
        for rows in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
            arrays = (np.take(part, rows, axis=0) for part in patches)
            yield standardise(Batch(*map(torch.from_numpy, arrays)))

    return epoch


def mapped(folder: Path, patches: Arrays) -> Arrays:
    """The same arrays as mapped files."""
    names = [folder / f"{number}.npy" for number in range(3)]
    for name, part in zip(names, patches, strict=True):
        np.save(name, part)
    source, target, where = (np.load(name, mmap_mode="r") for name in names)
    return source, target, where


def ways(folder: Path, shards: ShardSet, device: torch.device, batches: int) -> dict[str, Way]:
    """All that are measured, by name; peers give `batches` a turn, which takes them longer."""
    standardise = Standardiser(shards.manifest, device)
    dataset = PatchDataset(shards, "train")
    source, target, where = (part.numpy() for part in dataset[np.arange(len(dataset))])
    patches = source, target, where
    stream = DataConfig(resident="never")
    found: dict[str, Way] = {
        "ours, first epoch": lambda: first_epoch(shards, device),
        RESIDENT: ours(shards, DataConfig(), device),
        "ours, streaming": ours(shards, stream, device),
        "ours, streaming, 2 workers": ours(shards, replace(stream, workers=2), device),
        LIMIT: gather(patches, standardise),
        "gather from a memory map": gather(mapped(folder, patches), standardise),
    }
    if importlib.util.find_spec("webdataset"):
        (folder / "tars").mkdir()
        tars = write_tars(folder / "tars", patches)
        for workers in (0, min(2, len(tars))):
            name = f"WebDataset, one record a patch, {workers} workers"
            found[name] = webdataset(tars, standardise, workers)
    names = set(shards.manifest.names("train"))
    rows = [row for row in read_cohort(folder / "cohort") if row.name in names]
    pairs = [prepare_pair(row, shards.manifest.config.preprocess) for row in rows]
    volumes = write_volumes(
        folder, {pair.name: {"source": pair.source, "target": pair.target} for pair in pairs}
    )
    if importlib.util.find_spec("torchio"):
        for workers in (0, 2):
            name = f"TorchIO Queue, {workers} workers"
            found[name] = torchio(volumes, SIZE, device, batches, workers)
    if importlib.util.find_spec("monai"):
        for crops, title in ((1, "RandSpatialCrop"), (8, "RandSpatialCropSamples of 8")):
            for workers in (0, 2):
                name = f"MONAI CacheDataset, {title}, {workers} workers"
                found[name] = monai(volumes, SIZE, device, batches, crops, workers)
    return found


def rate(way: Way, device: torch.device) -> float:
    """Patches a second of one epoch."""
    started, patches = time.perf_counter(), 0
    for source, target in way():
        assert source.shape == target.shape == (BATCH, 1, SIZE, SIZE)
        assert source.dtype == torch.float32
        patches += len(source)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return patches / (time.perf_counter() - started)


def table(rates: dict[str, list[float]]) -> Iterator[str]:
    """Medians, spread, how many times faster ours is, and the share of the limit."""
    middle = {name: statistics.median(found) for name, found in rates.items()}
    yield "| way | patches/s | spread | ours resident / it | ours first epoch / it | of the limit |"
    yield "|---|---|---|---|---|---|"
    first = middle["ours, first epoch"]
    for name, found in rates.items():
        value = middle[name]
        yield (
            f"| {name} | {value:,.0f} | {min(found):,.0f} to {max(found):,.0f} | "
            f"{middle[RESIDENT] / value:.1f} | {first / value:.1f} | {value / middle[LIMIT]:.0%} |"
        )


def facts(device: torch.device, patches: int) -> str:
    """The machine and what is compared on it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    packages = ("torch", "webdataset", "torchio", "monai")
    versions = [
        f"{package} {importlib.metadata.version(package)}"
        for package in packages
        if importlib.util.find_spec(package)
    ]
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{', '.join(versions)}; {patches:,} pairs of {SIZE}x{SIZE} patches"
    )


def main(options: argparse.Namespace) -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")  # of the peers
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as train() does; it serves all that run in this process
    with tempfile.TemporaryDirectory() as name:
        shards = make_set(Path(name), 1600 if options.quick else 6000)
        found = ways(Path(name), shards, device, 10 if options.quick else 40)
        print(f"{facts(device, shards.manifest.patches('train'))}\n", flush=True)
        rates: dict[str, list[float]] = {way: [] for way in found}
        for turn in range(options.repeats + 1):
            for title, way in found.items():
                value = rate(way, device)
                if turn:  # the first one starts workers and fills caches
                    rates[title].append(value)
    print("\n".join(table(rates)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few patches")
    parser.add_argument("--repeats", type=int, default=5)
    main(parser.parse_args())

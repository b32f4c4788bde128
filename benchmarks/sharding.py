"""How fast patches become shards, beside plainer ways, and what memory a cohort takes.

    python benchmarks/sharding.py                 all of it, about five minutes on two cores
    python benchmarks/sharding.py --repeats 1     a quick look

1. Writing: from pairs of volumes in memory to patches on the disk, in turns in one run. Ours
   (blocks in tars, checksums, atomic), (a) the same bytes by numpy.save, one file an array and
   specimen, and (b) one record a patch by WebDataset's own ShardWriter. Ours waits for the disk
   (fsync), which the other two do not; so it is also shown without.
2. A whole cohort by write_shards, from NIfTI files, with one and with two processes.
3. Peak memory of one process that shards cohorts of growing size.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

# This file's folder comes first on the path, where its name would hide the package's.
sys.path = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from sharding.volumes.cohort import Specimen, read_cohort
from sharding.shards.cut import part_file, write_records
from sharding.shards.patches import cut, random_locations
from sharding.simulation.phantom import phantom_volume
from sharding.volumes.pair import (
    Pair,
    prepare_pair,
)
from sharding.volumes.config import (
    PreprocessConfig,
)
from sharding.shards.records import (
    quantise,
)
from sharding.shards.config import (
    ShardConfig,
)
from sharding.simulation.simulate import SimulationConfig, simulate_cohort
from sharding.io.storage import Folder
from sharding.volumes.volume import write_volume
from sharding.shards.write import (
    write_shards,
)
from sharding.shards.packing import (
    ByteRange,
    ShardPlan,
    pack_shard,
)

SHAPE = (128, 128, 96)
CONFIG = ShardConfig(patches_per_specimen=2000)
Located = tuple[Pair, NDArray[np.int32]]


def make_cohort(folder: Path, count: int) -> list[Specimen]:
    """One phantom with the noise of many scanners, and simulated sources."""
    volume = phantom_volume(SHAPE)
    rows = []
    for index in range(count):
        noise = np.random.default_rng(index).normal(0, 20, SHAPE)
        path = folder / f"s{index:03d}_target.nii.gz"
        write_volume(path, volume.with_data(np.clip(volume.data + noise, 0, None)))
        split = ("train", "val", "test")[max(0, index - count + 3)]
        rows.append(Specimen(f"s{index:03d}", path, split=split))
    return read_cohort(simulate_cohort(rows, folder / "sources", SimulationConfig()))


def ours(folder: Path, located: Sequence[Located]) -> None:
    """Parts, then shards of the target size, as write_shards does."""
    store = Folder(folder)
    plan: list[ByteRange] = []
    for pair, locations in located:
        offset = 0
        for patches, size in write_records(store, pair, locations, CONFIG):
            plan.append(ByteRange(pair.name, patches, part_file(pair.name), offset, size, ""))
            offset += size
    pack_shard(store, ShardPlan("train/train-000000.tar", "train", tuple(plan)))


def ours_without_waiting(folder: Path, located: Sequence[Located]) -> None:
    """The same, the disk left to write when it likes."""
    with patch("os.fsync"):
        ours(folder, located)


def numpy_save(folder: Path, located: Sequence[Located]) -> None:
    """(a) What a script would do: the same patches, one array file a role and specimen."""
    for pair, locations in located:
        for role, scaled in (("source", pair.source_scaled), ("target", pair.target_scaled)):
            patches = cut(quantise(scaled), CONFIG.patch_size, locations)
            np.save(folder / f"{pair.name}_{role}.npy", patches)
        np.save(folder / f"{pair.name}_where.npy", locations)


def record_a_patch(folder: Path, located: Sequence[Located]) -> None:
    """(b) WebDataset's own writer as its documentation uses it."""
    # Here, so that the processes of write_shards need not load torch with this program.
    from webdataset.writer import ShardWriter

    with ShardWriter(str(folder / "shard-%06d.tar"), maxsize=64e6, verbose=0) as writer:
        for pair, locations in located:
            source = cut(quantise(pair.source_scaled), CONFIG.patch_size, locations)
            target = cut(quantise(pair.target_scaled), CONFIG.patch_size, locations)
            for number, where in enumerate(locations):
                key = f"{pair.name}-{number:06d}"
                arrays = {"source.npy": source[number], "target.npy": target[number]}
                writer.write({"__key__": key, **arrays, "where.npy": where})


def compare_writers(specimens: Sequence[Specimen], repeats: int) -> str:
    """Patches and megabytes a second of each way, medians over turns."""
    located = []
    for specimen in specimens:
        pair = prepare_pair(specimen, PreprocessConfig())
        rng = np.random.default_rng(0)
        count = CONFIG.patches_per_specimen
        located.append((pair, random_locations(pair.mask, (64, 64), count, (0, 1, 2), 0.8, rng)))
    ways: dict[str, Callable[[Path, Sequence[Located]], None]] = {
        "ours": ours,
        "ours, without fsync": ours_without_waiting,
        "(a) numpy.save": numpy_save,
        "(b) one record a patch": record_a_patch,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                os.sync()
                start = time.perf_counter()
                way(Path(folder), located)
                seconds[name].append(time.perf_counter() - start)
    patches = len(located) * CONFIG.patches_per_specimen
    megabytes = patches * 2 * 2 * 64 * 64 / 1e6
    plain = statistics.median(seconds["(a) numpy.save"])
    one_by_one = statistics.median(seconds["(b) one record a patch"])
    rows = [
        "| way | patches/s | MB/s | spread of the time | of (a) | times (b) |",
        "|---|---|---|---|---|---|",
    ]
    for name, times in seconds.items():
        median = statistics.median(times)
        spread = f"{min(times):.2f} to {max(times):.2f} s"
        rows.append(
            f"| {name} | {patches / median:,.0f} | {megabytes / median:.0f} | {spread} | "
            f"{plain / median:.2f} | {one_by_one / median:.1f} |"
        )
    return "\n".join([f"{patches} pairs of 64x64 patches, {megabytes:.0f} MB", "", *rows])


def compare_workers(specimens: Sequence[Specimen], repeats: int) -> str:
    """Seconds of a whole cohort with one and with two processes."""
    config = replace(CONFIG, patches_per_specimen=300, val_slices=12)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, times in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                write_shards(specimens, Path(folder) / "shards", config, workers=workers)
                times.append(time.perf_counter() - start)
    one = statistics.median(seconds[1])
    rows = ["| processes | seconds | specimens/s | times one |", "|---|---|---|---|"]
    for workers, times in seconds.items():
        median = statistics.median(times)
        rows.append(
            f"| {workers} | {median:.1f} ({min(times):.1f} to {max(times):.1f}) | "
            f"{len(specimens) / median:.2f} | {one / median:.2f} |"
        )
    return "\n".join(rows)


def peak_memory(cohort: Path, count: int) -> float:
    """Peak resident MB of a process of its own that shards some of the cohort's specimens."""
    command = [sys.executable, __file__, "--measure-memory", str(cohort), str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_memory(cohort: Path, count: int) -> None:
    """What the process that peak_memory starts does."""
    specimens = read_cohort(cohort)
    chosen = [*specimens[: count - 2], *specimens[-2:]]
    config = replace(CONFIG, patches_per_specimen=300, val_slices=12)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(chosen, Path(folder) / "shards", config, workers=1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--specimens", type=int, default=12, help="of the largest cohort")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure-memory", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure_memory:
        measure_memory(Path(given.measure_memory[0]), int(given.measure_memory[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        specimens = make_cohort(Path(folder), given.specimens)
        size = "x".join(map(str, SHAPE))
        print(f"## Writing\n\n{compare_writers(specimens[:4], given.repeats)}\n", flush=True)
        print(f"## {len(specimens)} specimens of {size} voxels, from files to a finished set\n")
        print(f"{compare_workers(specimens, given.repeats)}\n", flush=True)
        print("## Peak memory of one process\n\n| specimens | MB |\n|---|---|")
        for count in sorted({4, given.specimens // 2, given.specimens}):
            print(f"| {count} | {peak_memory(Path(folder) / 'sources', count):.0f} |", flush=True)


if __name__ == "__main__":
    main()

"""A large cohort of tiny phantoms, really cut: time, memory and open files at several sizes.

    python -m benchmarks.large_cohort [--sizes N ...] [--folder FOLDER]

Specimens of 24 voxels a side, 1,500 training patches of 8 x 8 each. They are cut into shards by one
process, verified, an epoch is planned for one rank of 64, and its first batches are read. Then the
cutting is killed half way of a second set and resumed, and a tenth as many specimens are added by
an update. Each size has a process of its own; times are processor seconds. Open files are counted
after each specimen that is cut.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distsynth.data.loader import epoch_order, training_plan
from sharding.shards import write
from sharding.shards.config import ShardConfig
from sharding.shards.shard_set import ShardSet
from sharding.shards.verify import verify
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import Specimen, Split, read_cohort

SIZES = (100, 200, 400)
SHAPE = (24, 24, 24)
PATCHES = 1500
CUT = ShardConfig(patch_size=(8, 8), patches_per_specimen=PATCHES, stride=8, val_slices=1)


class StoppedError(Exception):
    """Stands for a kill."""


def write_cohort(folder: Path, count: int) -> list[Specimen]:
    """Phantoms as specimens; a tenth of them is for validation."""
    made = read_cohort(write_phantom_cohort(folder, specimens=count, shape=SHAPE))
    splits: list[Split] = ["val" if number % 10 == 9 else "train" for number in range(count)]
    return [replace(row, split=split) for row, split in zip(made, splits, strict=True)]


def costs(count: int, scratch: str) -> dict[str, float]:
    """Every part for so many specimens."""
    found: dict[str, float] = {}
    last = time.process_time()

    def mark(title: str) -> None:
        nonlocal last
        now = time.process_time()
        found[title] = now - last
        last = time.process_time()

    with tempfile.TemporaryDirectory(dir=scratch) as made:
        folder = Path(made)
        specimens = write_cohort(folder / "cohort", count + count // 10)
        first, out = specimens[:count], folder / "set"
        mark("making the cohort, s")
        open_files = Watch()
        with open_files:
            write_shards(first, out, CUT, workers=1)
        mark("cutting, s")
        shards = ShardSet(out)
        assert not verify(shards)
        mark("verify, s")
        counts = [shard.patches for shard in shards.manifest.shards if shard.split == "train"]
        plan = list(training_plan(epoch_order(counts, 0, 1, 64), 64 * 32, 3, 64))
        mark("plan of an epoch, s")
        with Watch(stop_after=count // 2):
            try:
                write_shards(first, folder / "killed", CUT, workers=1)
            except StoppedError:
                mark("half of it, stopped, s")
        write_shards(first, folder / "killed", CUT, workers=1)
        mark("resumed, s")
        same = (folder / "killed" / "manifest.json").read_bytes()
        assert same == (out / "manifest.json").read_bytes()
        shutil.rmtree(folder / "killed")
        last = time.process_time()
        write_shards(specimens, out, CUT, workers=1, update=True)
        mark("update by a tenth, s")
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found | {
        "steps of an epoch": float(len(plan)),
        "training patches": float(sum(counts)),
        "set, MB": size / 1e6,
        "memory of the process, MB": peak,
        "open files": float(open_files.most),
    }


class Watch:
    """Counts open files after each specimen, and may stop after some."""

    def __init__(self, stop_after: int = 0) -> None:
        self.most = 0
        self._left = stop_after or -1
        self._cut = write.cut_specimen

    def __enter__(self) -> Watch:
        write.cut_specimen = self._called  # type: ignore[assignment]
        return self

    def __exit__(self, *error: object) -> None:
        write.cut_specimen = self._cut

    def _called(self, *arguments: object) -> object:
        if self._left == 0:
            raise StoppedError
        self._left -= 1
        answer = self._cut(*arguments)  # type: ignore[arg-type]
        self.most = max(self.most, len([*Path("/proc/self/fd").iterdir()]))
        return answer


def main(sizes: Sequence[int], folder: Path) -> None:
    """A row for each quantity and a column for each size."""
    context = multiprocessing.get_context("spawn")
    found = []
    for size in sizes:
        with context.Pool(1) as pool:
            found.append(pool.apply(costs, (size, str(folder))))
        print(f"{size} specimens: {found[-1]}", file=sys.stderr, flush=True)
    print(f"| specimens | {' | '.join(f'{size:,}' for size in sizes)} |")
    print("|---" * (len(sizes) + 1) + "|")
    for title in found[0]:
        values = [each[title] for each in found]
        cells = [f"{value:,.0f}" if value >= 100 else f"{value:.2f}" for value in values]
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    main(given.sizes, given.folder)

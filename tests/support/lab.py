"""A small cohort to shard, in this process or in one of its own that is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import CallMoment, Moment, Stop
from tiny_runs import start

from sharding.io.errors import DataError
from sharding.shards.config import ShardConfig
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards
from sharding.volumes.cohort import SPLITS, Specimen, Split
from sharding.volumes.volume import Volume, write_volume

SHAPE = (16, 14, 12)
SMALL = ShardConfig(patch_size=(8, 8), patches_per_specimen=10, stride=8, block=4, shard_mb=0.01)
"""Training specimens have records of 4, 4 and 2 patches, a shard holds two records."""
SECONDS = 60
"""A process that takes longer hangs."""
BEFORE_THE_MANIFEST = CallMoment("sharding.io.storage:Folder.write", "manifest.json")


def make_lab(folder: Path, names: str = "abcd") -> Path:
    """Write a source and a target of noise for every letter."""
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        for role in ("s", "t"):
            data = rng.uniform(1, 100, SHAPE).astype(np.float32)
            write_volume(folder / f"{name}_{role}.nii.gz", Volume(data, np.eye(4)))
    return folder


def rows(lab: Path, splits: str = "a train, b train, c val, d test") -> list[Specimen]:
    """The cohort of `splits`, each with its split."""
    found = []
    for pair in splits.split(","):
        name, word = pair.split()
        split: Split = next(known for known in SPLITS if known == word)
        files = [lab / f"{name}_{role}.nii.gz" for role in ("t", "s")]
        found.append(Specimen(name, *files, split))
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """Relative path to content of every file below, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Relative path to inode and time of every file below: neither stays if it is written anew."""
    found = {}
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if path.is_file():
                found[str(path.relative_to(folder))] = status.st_ino, status.st_mtime_ns
    return found


def change_target(lab: Path, name: str, seed: int = 77) -> None:
    """Replace a target by another of the same size."""
    data = np.random.default_rng(seed).uniform(1, 100, SHAPE).astype(np.float32)
    write_volume(lab / f"{name}_t.nii.gz", Volume(data, np.eye(4)))


def break_target(lab: Path, name: str) -> None:
    """Replace a target by one that cannot be used."""
    write_volume(lab / f"{name}_t.nii.gz", Volume(np.ones(SHAPE, np.float32), np.eye(4)))


def shard(specimens: Sequence[Specimen], out: str, config: ShardConfig, options: dict) -> None:
    """What the processes below run."""
    write_shards(specimens, out, config, **options)


@contextlib.contextmanager
def sharding(
    specimens: Sequence[Specimen],
    out: str | Path,
    config: ShardConfig,
    log: Path,
    environment: dict[str, str] | None = None,
    **options: object,
) -> Iterator[BaseProcess]:
    """A process that shards; killed at the end of the block, if it has not ended."""
    given = {"workers": 1} | options
    more = {"OMP_NUM_THREADS": "1"} | (environment or {})
    process = start(shard, specimens, str(out), config, given, environment=more, log=log)
    try:
        yield process
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def stopped_sharding(
    moment: Moment,
    specimens: Sequence[Specimen],
    out: str | Path,
    config: ShardConfig,
    log: Path,
    environment: dict[str, str] | None = None,
    **options: object,
) -> Iterator[BaseProcess]:
    """A process that shards and has stopped at a moment; it is killed at the end of the block."""
    with tempfile.TemporaryDirectory() as notes:
        stop = Stop(moment, Path(notes))
        more = stop.environment | (environment or {})
        with sharding(specimens, out, config, log, environment=more, **options) as process:
            stop.wait(process)
            yield process


def stopped_before_the_manifest(
    specimens: Sequence[Specimen], out: str | Path, config: ShardConfig, log: Path, **options: Any
) -> contextlib.AbstractContextManager[BaseProcess]:
    """The same, when everything but the manifest is written."""
    return stopped_sharding(BEFORE_THE_MANIFEST, specimens, out, config, log, **options)


def until(
    reached: Callable[[], bool],
    process: BaseProcess | None = None,
    seconds: float = SECONDS,
    pause: float = 0.0005,
) -> None:
    """Look until something is so, or the process has ended.

    Raises:
        TimeoutError: If neither happens.
    """
    deadline = time.monotonic() + seconds
    while not reached() and (process is None or process.is_alive()):
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come to it")
        time.sleep(pause)


def children(process: int) -> list[int]:
    """Processes that a process has started and that run."""
    try:
        return [
            int(word)
            for task in Path(f"/proc/{process}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def pool_workers(process: int) -> list[int]:
    """Those children that are workers of a pool."""
    found = []
    for child in children(process):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def is_running(process: int) -> bool:
    """Whether there is such a process, and it is no corpse."""
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(process: int) -> None:
    """At once, as the system does for want of memory."""
    os.kill(process, signal.SIGKILL)


def without_split(specimens: Sequence[Specimen]) -> list[Specimen]:
    """A cohort that leaves the splits open."""
    return [replace(row, split=None) for row in specimens]


def unfinished(lab: Path) -> set[str]:
    """Names of the parts in lab/out, which must not be openable."""
    with pytest.raises(
        DataError, match=r"manifest\.json: (this shard set is not finished|there is no sh)"
    ):
        ShardSet(lab / "out")
    return {path.stem for path in (lab / "out" / "parts" / "specimens").glob("*.json")}

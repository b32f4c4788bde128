"""What a large sweep and a large manifest take: processor seconds and memory at several sizes.

    python -m benchmarks.scale sweep [--sizes N ...] [--s3]
    python -m benchmarks.scale manifest [--sizes N ...]

sweep: trials that cost nothing. Ray and training are left out: the driver's callback is called as
Tune calls it for a trial of two epochs, so that what this program adds to each trial is all there
is. Then the status is shown and the sweep is prepared for resumption. With --s3 the folder
is one of an S3 server in a process of its own on this machine, whose time is not counted.

manifest: records of made-up specimens, 1,500 patches each, as a set of shards lists them; they are
written, read, checked, and an epoch is planned for one rank of 64.

Each size has a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.request import Request, urlopen

from distsynth.config import with_overrides
from distsynth.data.loader import epoch_order, training_plan
from distsynth.metrics.objective import VALIDATION_METRICS
from distsynth.presets import preset
from distsynth.sweep.callback import SweepCallback
from distsynth.sweep.folder import SweepFolder
from distsynth.sweep.leaderboard import leaderboard_table, rank_trials
from distsynth.sweep.plan import SweepConfig, SweepPlan
from distsynth.sweep.run import _planned_trials
from sharding.io.storage import Folder
from sharding.shards.config import ShardConfig
from sharding.shards.manifest import (
    Manifest,
    ShardRecord,
    SpecimenRecord,
    SpecimenSpan,
    check_manifest,
    read_manifest,
    shard_name,
)
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import read_cohort
from tune_spaces.named import named_space
from tune_spaces.plain import space_from_plain, space_to_plain

SIZES = {"sweep": (500, 2000, 5000), "manifest": (500, 2000)}
EPOCHS = 2
PATCHES = 1500
PATCHES_A_SHARD = 6000
Costs = dict[str, float]


class Clock:
    """Processor seconds of each part, in order."""

    def __init__(self) -> None:
        self.costs: Costs = {}
        self._last = time.process_time()

    def mark(self, title: str) -> None:
        """End a part."""
        now = time.process_time()
        self.costs[title] = now - self._last
        self._last = now

    def finish(self) -> Costs:
        """All parts, and the largest memory of the process in MB."""
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return self.costs | {"memory, MB": used}


def sweep_costs(trials: int, folder: Path | str) -> Costs:
    """A sweep of trials that cost nothing, in a folder or below a URL."""
    base = with_overrides(
        preset("small"),
        {"data.patch_size": (64, 64), "data.neighbours": 0, "train.epochs": EPOCHS},
    )
    space = named_space(("learning-rates",))
    config = SweepConfig(trials=trials, search="random", scheduler="fifo")
    plan = SweepPlan("large", "0" * 8, base, space_to_plain(space), config)
    sweep = SweepFolder(f"{folder}/large")
    sweep.exists()  # Connects.
    clock = Clock()
    records = _planned_trials(plan, space, {})
    clock.mark("planning")
    sweep.write_plan(plan)
    sweep.write_records(records.values())
    sweep.write_snapshot(records.values())
    clock.mark("records of waiting trials")
    _drive(SweepCallback(sweep, plan, dict(records)))
    clock.mark("a trial's two epochs, all trials")
    with redirect_stdout(StringIO()):
        found = sweep.records()
        leaderboard_table(plan, rank_trials(plan, found), 15)
    clock.mark("status")
    sweep.remove_leftovers()
    again = _planned_trials(plan, space_from_plain(plan.space), sweep.records())
    assert again.keys() <= found.keys()
    clock.mark("resumption")
    costs = clock.finish()
    return costs | {"files": len(sweep.folder.names())}


@contextmanager
def s3_bucket() -> Iterator[str]:
    """The URL of an empty bucket on a server that runs meanwhile, which the environment names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            with suppress(OSError):
                urlopen(Request(f"{endpoint}/sweeps", method="PUT")).close()
                break
            time.sleep(0.2)
        yield "s3://sweeps"
    finally:
        server.terminate()
        server.wait()


def _drive(callback: SweepCallback) -> None:
    """Call it as Tune does, trial after trial."""
    for number, (name, record) in enumerate(list(callback.records.items())):
        trial: Any = _Trial(name, {"trial": {"hyperparameters": record.hyperparameters}})
        callback.on_trial_start(0, [], trial)
        for epoch in range(1, EPOCHS + 1):
            metrics = {f"val/{metric}": 20.0 + number % 97 for metric in VALIDATION_METRICS}
            report = {"epoch": epoch, "step": epoch, "metrics": metrics}
            scores = {"score": 20.0 + number % 97, "best_score": 20.0 + number % 97}
            callback.on_trial_result(0, [], trial, {"reports": [report | scores]})
        callback.on_trial_complete(0, [], trial)
    callback.stop()


class _Trial(SimpleNamespace):
    """What the callback asks of Tune's trials."""

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        super().__init__(name=name, config=config)

    def __str__(self) -> str:
        return self.name


def manifest_costs(specimens: int, folder: Path) -> Costs:
    """A manifest of so many specimens."""
    made = _manifest(specimens, folder)
    clock = Clock()
    text = made.to_json()
    Folder(folder / "set").write("manifest.json", text)
    clock.mark("writing")
    read = read_manifest(Folder(folder / "set"))
    clock.mark("reading")
    check_manifest("manifest", read)
    clock.mark("checking")
    _ = read.sha256
    clock.mark("fingerprint")
    counts = [shard.patches for shard in read.shards if shard.split == "train"]
    order = epoch_order(counts, 0, 1, 64)
    plan = list(training_plan(order, 64 * 32, 3, 64))
    clock.mark("plan of an epoch")
    assert len(plan) == sum(counts) // (64 * 32)
    return clock.finish() | {"size, MB": len(text) / 1e6, "patches": float(sum(counts))}


def _manifest(specimens: int, folder: Path) -> Manifest:
    """Copies of a real specimen's record under other names."""
    cohort = write_phantom_cohort(folder / "cohort", specimens=3, shape=(24, 24, 24))
    cut = ShardConfig(patch_size=(16, 16), patches_per_specimen=8, stride=16, val_slices=1)
    write_shards(read_cohort(cohort), folder / "one", cut, workers=1)
    real = read_manifest(Folder(folder / "one"))
    row = next(each for each in real.specimens if each.split == "train")

    def named(number: int) -> SpecimenRecord:
        digests = {
            field: hashlib.sha256(f"{field}{number}".encode()).hexdigest()
            for field in ("source_sha256", "target_sha256", "inputs_sha256")
        }
        return replace(row, name=f"made-{number:06d}", patches=PATCHES, **cast(Any, digests))

    rows = tuple(named(number) for number in range(specimens))
    each = PATCHES_A_SHARD // PATCHES
    shards = []
    for index, low in enumerate(range(0, specimens, each)):
        spans = tuple(
            SpecimenSpan(one.name, PATCHES, at * 10**7, 10**7)
            for at, one in enumerate(rows[low : low + each])
        )
        name, total = shard_name("train", index), sum(span.patches for span in spans)
        digest = hashlib.sha256(name.encode()).hexdigest()
        shards.append(ShardRecord(name, "train", total, 10**7 * len(spans), digest, spans))
    return replace(real, specimens=rows, shards=tuple(shards))


PARTS: dict[str, Callable[[int, Path], Costs]] = {
    "sweep": sweep_costs,
    "manifest": manifest_costs,
}


def _measured(part: str, size: int, s3: bool) -> Costs:
    if s3:
        with s3_bucket() as url:
            return sweep_costs(size, url)
    with tempfile.TemporaryDirectory() as folder:
        return PARTS[part](size, Path(folder))


def main(part: str, sizes: Sequence[int], s3: bool = False) -> None:
    """Print a row for each quantity and a column for each size."""
    spawn = multiprocessing.get_context("spawn")
    found = []
    for size in sizes:
        with spawn.Pool(1) as pool:
            found.append(pool.apply(_measured, (part, size, s3)))
    names = {"sweep": "trials", "manifest": "specimens"}
    print(f"| {names[part]} | " + " | ".join(f"{size:,}" for size in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for title in found[0]:
        values = [costs[title] for costs in found]
        cells = [f"{value:,.0f}" if value >= 100 else f"{value:.2f}" for value in values]
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--s3", action="store_true", help="of a sweep: on an S3 server")
    options = parser.parse_args()
    if options.s3 and options.part != "sweep":
        parser.error("--s3 is for a sweep")
    main(options.part, options.sizes or SIZES[options.part], options.s3)

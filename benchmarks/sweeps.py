"""What a sweep costs beside the training that it does, on small networks and phantoms.

    python -m benchmarks.sweeps [FOLDER] [--quick] [--searches]

Trials an hour: of a sweep with one trial at a time and with as many as cores, beside `bare`, the
same trials by `train()` itself, one after the other in one process that has loaded everything. An
epoch is short here on purpose, so that what is not training shows. Below stand the parts that
make the difference, and those that bare training has too: tracking (W&B offline) and checkpoints.

On a machine with a GPU follows what trials that share one card train together. --searches adds
each kind of search with trials of one and of two workers (DDP ranks), whose processes serve one
trial only; on a machine with room for n trials at a time a sweep without any cost would take 1/n
of `bare`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import wraps
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import ray
import torch

import distsynth.training.checkpointing
import distsynth.training.run
from distsynth.config import RunConfig, with_overrides
from distsynth.data.loader import PatchDataset
from distsynth.presets import preset
from distsynth.runs.tracking import Trackers
from distsynth.sweep.callback import SweepCallback
from distsynth.sweep.cluster import cluster
from distsynth.sweep.folder import SweepFolder, TrialRecord
from distsynth.sweep.plan import SweepConfig, SweepPlan
from distsynth.sweep.run import make_plan, start_sweep
from distsynth.sweep.trial import run_config
from distsynth.training.loop import train
from sharding.io.parallel import available_cores
from sharding.shards.config import ShardConfig
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import read_cohort
from tune_spaces.named import named_space

SPACE = ["loss-weights", "learning-rates"]
LIBRARIES = ("distsynth.sweep.trial", "torch._dynamo", "torch.distributed.tensor", "wandb")
"""What a trial's process loads, the latter ones with its first step."""
SHARING = (1, 2, 4, 8)
"""Trials that share a card."""
KINDS: dict[str, dict[str, Any]] = {
    "random, fifo": {},
    "random, asha": {"scheduler": "asha"},
    "optuna, asha": {"search": "optuna", "scheduler": "asha"},
    "random, pbt": {"scheduler": "pbt"},
}


class Size(NamedTuple):
    """How much is trained."""

    trials: int
    epochs: int
    patches: int


FULL, QUICK = Size(8, 4, 200), Size(3, 2, 60)


class Told(NamedTuple):
    """A report of a trial, as the driver got it: when, whose, and its seconds in the process."""

    at: float
    trial: str
    seconds: float


class Swept(NamedTuple):
    """A sweep that has ended."""

    plan: SweepPlan
    records: dict[str, TrialRecord]
    seconds: float
    told: list[Told]


def main(folder: Path, size: Size, searches: bool) -> None:
    """Print the tables."""
    write_phantom_cohort(folder / "cohort", specimens=6, seed=1)
    cut = ShardConfig(
        patch_size=(32, 32), patches_per_specimen=size.patches, stride=20, val_slices=6
    )
    write_shards(read_cohort(folder / "cohort"), folder / "shards", cut)
    base = with_overrides(
        preset("small"),
        {
            "data.shards": str(folder / "shards"),
            "data.patch_size": (32, 32),
            "stitch.trim": 4,
            "train.epochs": size.epochs,
            "optim.schedule": "constant",
        },
    )
    cores = available_cores()
    print(f"{size.trials} trials of {size.epochs} epochs, {cores} cores\n")
    started = time.perf_counter()
    with cluster(None):
        joined = time.perf_counter() - started
        overhead(folder, base, size, cores, joined)
        if torch.cuda.is_available():
            cards(folder, base, size)
        if searches:
            kinds(folder, base, size)


def overhead(folder: Path, base: RunConfig, size: Size, cores: int, joined: float) -> None:
    """Trials an hour, and where the time goes."""
    one = swept(folder / "one", base, SweepConfig(size.trials, seed=3, concurrent=1))
    several = swept(folder / "several", base, SweepConfig(size.trials, seed=3))
    bare, spent = trained(folder / "bare", one)
    ended = [report.at for report, after in pairwise(one.told) if after.trial != report.trial]
    print("| what | s | trials an hour |\n|---|---|---|")
    for title, trials, seconds in (
        ("bare training, one trial after the other", size.trials, bare),
        ("a sweep, one trial at a time", size.trials, one.seconds),
        ("the same after its first trial", size.trials - 1, one.told[-1].at - ended[0]),
        (f"a sweep, {cores} at a time", size.trials, several.seconds),
    ):
        print(f"| {title} | {seconds:.2f} | {3600 * trials / seconds:,.0f} |")
    # Between two reports, what is not training.
    idle = [(last, here, here.at - last.at - here.seconds) for last, here in pairwise(one.told)]
    start, load = ray.get(Newcomer.remote().costs.remote(time.time()))  # type: ignore[attr-defined]
    for title, seconds in (
        ("once a sweep: Ray's start", joined),
        ("once a process: its start", start),
        ("once a process: loading libraries", load),
        ("a trial: training itself", (bare - sum(spent.values())) / size.trials),
        ("a trial: tracking, in bare training too", spent["tracking"] / size.trials),
        ("a trial: checkpoints, in bare training too", spent["checkpoints"] / size.trials),
        ("a trial: its process taken over", fmean(s for a, b, s in idle if a.trial != b.trial)),
        ("an epoch: report and answer", fmean(s for a, b, s in idle if a.trial == b.trial)),
    ):
        print(f"| {title} | {seconds:.3f} | |")


def swept(folder: Path, base: RunConfig, sweep: SweepConfig) -> Swept:
    """Run a sweep."""
    told: list[Told] = []
    inner = SweepCallback.on_trial_result

    def noted(
        callback: SweepCallback, iteration: int, trials: Any, trial: Any, result: Any, **more: Any
    ) -> None:
        told.append(Told(time.perf_counter(), str(trial), result["time_this_iter_s"]))
        inner(callback, iteration, trials, trial, result, **more)

    plan = make_plan(folder.name, base, named_space(SPACE), sweep)
    SweepCallback.on_trial_result = noted  # type: ignore[method-assign]
    try:
        started = time.perf_counter()
        result = start_sweep(SweepFolder(folder), plan)
        return Swept(plan, result.records, time.perf_counter() - started, told)
    finally:
        SweepCallback.on_trial_result = inner  # type: ignore[method-assign]


def trained(folder: Path, sweep: Swept) -> tuple[float, dict[str, float]]:
    """The epochs of a sweep's trials without it: seconds, and those of parts of it."""
    torch.set_num_threads(sweep.plan.sweep.cpus)
    configs = []
    for record in sweep.records.values():
        config = run_config(sweep.plan, record.name, record.hyperparameters)
        configs.append(with_overrides(config, {"train.epochs": max(record.epochs, 1)}))
    # Loads what the first step loads.
    train(with_overrides(configs[0], {"train.epochs": 1}), folder / "first")
    spent: dict[str, float] = defaultdict(float)
    with contextlib.ExitStack() as stack:
        stack.enter_context(timed(spent, "tracking", distsynth.training.run, "start_trackers"))
        for name in ("log", "picture", "finish"):
            stack.enter_context(timed(spent, "tracking", Trackers, name))
        stack.enter_context(
            timed(spent, "checkpoints", distsynth.training.checkpointing, "save_checkpoint")
        )
        started = time.perf_counter()
        for number, config in enumerate(configs):
            train(config, folder / str(number))
        return time.perf_counter() - started, spent


@contextlib.contextmanager
def timed(spent: dict[str, float], title: str, owner: Any, name: str) -> Iterator[None]:
    """Add the seconds of a function to those under a title."""
    inner = getattr(owner, name)

    @wraps(inner)
    def outer(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return inner(*args, **options)
        finally:
            spent[title] += time.perf_counter() - started

    setattr(owner, name, outer)
    try:
        yield
    finally:
        setattr(owner, name, inner)


@ray.remote
class Newcomer:
    """A process as a trial's."""

    def costs(self, asked: float) -> tuple[float, float]:
        """Seconds from when it was asked for until it runs, and of loading what a trial needs."""
        started = time.time()
        for name in LIBRARIES:
            importlib.import_module(name)
        return started - asked, time.time() - started


def cards(folder: Path, base: RunConfig, size: Size) -> None:
    """What trials that share a card train together, once all of them run."""
    patches = len(PatchDataset(ShardSet(base.data.shards), "train"))
    print("\n| trials a card | epochs | patches/s together |\n|---|---|---|")
    cores = available_cores()
    for count in (count for count in SHARING if count <= cores):
        sweep = SweepConfig(max(size.trials, 2 * count), seed=3, gpus=1 / count, concurrent=count)
        told = swept(folder / f"card-{count}", base, sweep).told
        # All processes have loaded everything when each has told of an epoch.
        first = [report for at, report in enumerate(told) if report.trial not in _names(told[:at])]
        begun = first[count - 1].at
        seconds, epochs = told[-1].at - begun, sum(report.at > begun for report in told)
        print(f"| {count} | {epochs} | {epochs * patches / seconds:,.0f} |", flush=True)


def _names(told: list[Told]) -> set[str]:
    return {report.trial for report in told}


def kinds(folder: Path, base: RunConfig, size: Size) -> None:
    """Each kind of search, with trials of one and of two workers."""
    print("\n| search | workers a trial | s | trained epochs | bare s | sweep / bare | failures |")
    print("|---|---|---|---|---|---|---|")
    for name, options in KINDS.items():
        for workers in (1, 2):
            title = f"{name}-{workers}".replace(", ", "-")
            sweep = SweepConfig(size.trials, workers=workers, seed=3, **options)
            found = swept(folder / title, base, sweep)
            bare, _ = trained(folder / f"{title}-bare", found)
            epochs = sum(record.epochs for record in found.records.values())
            failures = sum(len(record.failures) for record in found.records.values())
            print(
                f"| {name} | {workers} | {found.seconds:.0f} | {epochs} | {bare:.0f} | "
                f"{found.seconds / bare:.2f} | {failures} |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where to work; else a passing one")
    parser.add_argument("--quick", action="store_true", help="few short trials")
    parser.add_argument("--searches", action="store_true", help="each kind of search too")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        scratch = given.folder or stack.enter_context(tempfile.TemporaryDirectory())
        main(Path(scratch), QUICK if given.quick else FULL, given.searches)

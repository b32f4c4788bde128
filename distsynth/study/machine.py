"""What the machine can do: the seconds of a training step, and the precision that gains."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distsynth.api import make_phantoms
from distsynth.config import RunConfig, with_overrides
from distsynth.training.loop import train
from distsynth.training.precision import Choice, choose_precision
from distsynth.training.report import EpochReport
from sharding.shards.config import ShardConfig
from sharding.shards.write import write_shards
from sharding.simulation.simulate import SimulationConfig

STEPS = 6
"""Steps of each timed epoch."""
PHANTOM_SIDE = 80
"""Voxels along each side of a phantom; a larger patch takes a larger one."""


@dataclass(frozen=True)
class Spent:
    """What a process has spent.

    Attributes:
        wall: Seconds by the clock.
        processor: Seconds of processors, of all its threads.
    """

    wall: float
    processor: float

    @classmethod
    def now(cls) -> Spent:
        """What this process has spent until now."""
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, earlier: Spent) -> Spent:
        return Spent(self.wall - earlier.wall, self.processor - earlier.processor)

    def alone(self, gpu: bool, threads: int) -> float:
        """Seconds that it would have taken, had no other program run.

        On processors that is their time, divided among the threads that may run at once, but not
        more than the clock says. A GPU works while its process waits: there the clock counts.
        """
        return self.wall if gpu else min(self.wall, self.processor / threads)


def threads_at_once() -> int:
    """Threads of torch that the processors of this process can run at once."""
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return max(1, min(torch.get_num_threads(), len(allowed)))


def timed_step(config: RunConfig, shards: ShardConfig) -> float:
    """Seconds of an optimiser step where nothing else runs, timed by training on phantoms.

    Args:
        config: The training; where its shards lie does not matter.
        shards: What its patches are like.
    """
    side = max(PHANTOM_SIDE, max(shards.patch_size) + 2 * shards.neighbours + 8)
    training = 3
    with tempfile.TemporaryDirectory(prefix="distsynth-timed-") as scratch, _silence():
        folder = Path(scratch)
        count = config.data.contrasts or 1
        kinds = tuple(f"c{number}=1" for number in range(count)) if count > 1 else ()
        specimens = make_phantoms(
            folder / "cohort",
            training + 2,
            (side, side, side),
            simulation=SimulationConfig(contrasts=kinds),
        )
        patches = -(-STEPS * config.train.batch_size // training)
        small = replace(
            shards, patches_per_specimen=patches, val_slices=1, fractions=(0.6, 0.2, 0.2)
        )
        # In this process: others would take longer to start than phantoms to cut.
        write_shards(specimens, folder / "shards", small, workers=1)
        changes = {
            "data.shards": str(folder / "shards"),
            "train.epochs": 3,
            "train.minutes": 0.0,
            "train.validate_every": 3,
            "tracking.mode": "disabled",
        }
        spent: list[Spent] = []

        def note(report: EpochReport) -> None:
            del report
            spent.append(Spent.now())

        train(with_overrides(config, changes), folder / "run", on_epoch=note)
        # The first epoch warms up, the third validates.
        epoch = (spent[1] - spent[0]).alone(_on_gpu(config), threads_at_once())
        return epoch / (training * patches // config.train.batch_size)


def measured_precision(config: RunConfig) -> Choice:
    """The precision that gains on this machine, and why, found as a training finds it.

    Args:
        config: A training whose patches are known.
    """
    return choose_precision(config, torch.device("cuda" if _on_gpu(config) else "cpu"))


def _on_gpu(config: RunConfig) -> bool:
    """Whether a training runs on a GPU here."""
    return config.train.device == "auto" and available_gpus() > 0


def available_gpus() -> int:
    """GPUs that torch finds."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@contextmanager
def _silence() -> Iterator[None]:
    """No progress and no messages of the timed training."""
    loggers = [logging.getLogger(name) for name in ("distsynth", "sharding")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

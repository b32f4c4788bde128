"""Trainings that differ in one thing, each given the same processor time, on whole volumes.

    python -m benchmarks.study_equal_time adversarial COHORT OUT --seconds 300 --seeds 3

`adversarial` asks which adversarial loss is worth its time, for the generator of unet-7 with and
without a discriminator; `dimensions` asks the same of slices, of five slices in and one out, and of
blocks, for one residual stack. The seconds are those of the training steps, counted by the clock of
the process: the learning rates end with them, whatever a step costs, and only the last weights are
validated and evaluated, outside of that time. OUT/results/ keeps one file a training: what is there
is not trained again. One thread each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import distsynth
from benchmarks.processor_time import train_for
from distsynth.config import RunConfig
from distsynth.evaluation.evaluate import evaluate
from distsynth.presets import ADVERSARIAL
from sharding.io.atomic import atomic_write
from sharding.shards.config import ShardConfig
from sharding.volumes.cohort import Specimen, read_cohort


@dataclass(frozen=True)
class Contestant:
    """One way of training.

    Attributes:
        preset: What it starts from.
        changes: Dotted fields that differ from the preset.
        shards: Fields of ShardConfig that differ from the defaults of the study.
    """

    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    shards: Mapping[str, Any] = field(default_factory=dict)


NO_DISCRIMINATOR = {"loss.lambda_bce": 0.0, "discriminator.family": "none"}
BLOCKS = {"patch_size": (32, 32, 32), "stride": 16, "patches_per_specimen": 100}
"""Of blocks a training of minutes sees no more: 300 a specimen, the paper's number of slices, would
only be cut."""
OF_BLOCKS = {**NO_DISCRIMINATOR, "train.batch_size": 4}

CONTESTS: dict[str, dict[str, Contestant]] = {
    "adversarial": {
        "none": Contestant("unet-7", NO_DISCRIMINATOR),
        "bce": Contestant("unet-7", ADVERSARIAL["bce"]),
        "least-squares": Contestant("unet-7", ADVERSARIAL["least-squares"]),
        "hinge": Contestant("unet-7", ADVERSARIAL["hinge"]),
        "wasserstein": Contestant(
            "unet-7", ADVERSARIAL["wasserstein"] | {"optim.discriminator_steps": 5}
        ),
    },
    "dimensions": {
        "2D": Contestant("small", NO_DISCRIMINATOR),
        "2.5D": Contestant("small", NO_DISCRIMINATOR, {"neighbours": 2}),
        "3D": Contestant("small", OF_BLOCKS, BLOCKS),
        "3D-narrow": Contestant("small", OF_BLOCKS | {"generator.channels": (16,) * 6}, BLOCKS),
    },
}
"""Contest -> name -> how it trains. `wasserstein` updates its critic five times a step of the
generator, as its authors do; 2D and 2.5D are stitched from three axes."""


@dataclass(frozen=True)
class Work:
    """One training of a contest.

    Attributes:
        name: Of the contestant.
        contestant: How it trains.
        seed: Of its weights and its order of patches.
        seconds: Processor time that it is given.
        precision: In which it trains.
        cohort: Path of the cohort.
        out: Folder of the contest.
    """

    name: str
    contestant: Contestant
    seed: int
    seconds: float
    precision: str
    cohort: Path
    out: Path

    @property
    def result(self) -> Path:
        """The file that says what came of it."""
        return self.out / "results" / f"{self.name}-{self.seed}.json"


def perform(work: Work) -> None:
    """Train by the clock of this process, evaluate the last weights, keep what came of it."""
    torch.set_num_threads(1)
    specimens = read_cohort(work.cohort)
    config = ShardConfig(val_slices=8, **work.contestant.shards)
    shards = _cut(work, specimens, config)
    predictor, numbers = train_for(
        _config(work), shards, work.out / _run(work), work.seconds, work.seed
    )
    evaluation = evaluate({work.name: predictor}, specimens, baselines=())
    found = {
        "name": work.name,
        "seed": work.seed,
        "steps": numbers["steps"],
        "patches": config.patches_per_specimen,
        "processor_seconds": round(numbers["spent"], 1),
        "precision": work.precision,
        "results": evaluation.results[work.name],
    }
    work.result.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(work.result, json.dumps(found, indent=1) + "\n")


def _config(work: Work) -> RunConfig:
    changes = {"train.precision": work.precision, **work.contestant.changes}
    return distsynth.load_config(work.contestant.preset, changes)


def _cut(work: Work, specimens: list[Specimen], config: ShardConfig) -> str:
    """The shards of a contestant, made once; their names say what they hold."""
    sizes = (*config.patch_size, config.neighbours, config.patches_per_specimen)
    out = work.out / "shards" / "-".join(map(str, sizes))
    # Resumes a set that is not finished, and takes a finished one as it is.
    return str(distsynth.shard(specimens, out, config).folder.url)


def _run(work: Work) -> str:
    return f"runs/{work.name}-{work.seed}"


def main() -> None:
    """Perform what is not there yet, each training in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contest", choices=CONTESTS)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--only", nargs="*", help="Names of contestants.")
    given = parser.parse_args()
    chosen = CONTESTS[given.contest]
    works = [
        Work(name, chosen[name], seed, given.seconds, given.precision, given.cohort, given.out)
        for seed in range(given.seeds)
        for name in given.only or chosen
    ]
    context = multiprocessing.get_context("spawn")
    for work in works:
        if not work.result.exists():
            _in_a_process(context, perform, work)
        print(work.result, flush=True)


def _in_a_process(context: Any, function: Callable[[Work], None], work: Work) -> None:
    process = context.Process(target=function, args=(work,))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.name}, seed {work.seed}, ended with {process.exitcode}")


if __name__ == "__main__":
    main()

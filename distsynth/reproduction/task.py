"""What was asked for: rows, seeds and budget; written once, and compared on --resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distsynth.config import RunConfig, with_overrides
from distsynth.errors import ConfigError
from distsynth.evaluation.forest import BOOSTED, ForestConfig
from distsynth.evaluation.forest import FORESTS as FOREST_CONFIGS
from distsynth.losses.perceptual import weights_path
from distsynth.reproduction.budget import PAPER_STRIDE, Budget
from distsynth.reproduction.rows import FORESTS, NETWORKS
from distsynth.sections import Resolved
from sharding.io.errors import DataError
from sharding.io.records import STRICT, first_complaint
from sharding.io.storage import Folder
from sharding.shards.config import ShardConfig

TASK_FILE = "reproduction.json"
VALIDATIONS = 10
"""At most about this many epochs of a run are validated."""


@dataclass(frozen=True)
class Task:
    """A reproduction as it was asked for.

    Attributes:
        cohort: Absolute path of the cohort.
        shards: Where its patches lie, reachable from every node.
        rows: Names of NETWORKS and FORESTS.
        seeds: How often each network is trained.
        budget: How much of the paper's training.
        precision: In which the networks are trained; one for all, so that rows compare.
        vgg_weights: For the perceptual rows; None looks in the cache of this user.
    """

    __pydantic_config__ = STRICT

    cohort: str
    shards: str
    rows: tuple[str, ...]
    seeds: int = 1
    budget: Budget = field(default_factory=Budget)
    precision: Resolved = "no"
    vgg_weights: str | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds must be >= 1, got {self.seeds}")

    def shard_config(self) -> ShardConfig:
        """What is cut from the cohort: training patches anywhere, as in the paper."""
        return ShardConfig(
            patches_per_specimen=self.budget.patches,
            val_slices=self.budget.val_slices,
            foreground=0.0,
        )

    def networks(self) -> tuple[str, ...]:
        """The rows that are networks."""
        return tuple(name for name in self.rows if name in NETWORKS)

    def forests(self) -> tuple[str, ...]:
        """The rows that are forests."""
        return tuple(name for name in self.rows if name in FORESTS)

    def run_names(self, row: str) -> tuple[str, ...]:
        """Runs of a row, one for each seed; the first has the row's own name."""
        return (row, *(f"{row}-seed-{seed}" for seed in range(1, self.seeds)))

    def changes(self, row: str, seed: int) -> dict[str, Any]:
        """What the budget and the seed change of a row's configuration."""
        config = NETWORKS[row].config
        epochs = self.budget.epochs_of(config.train.epochs, NETWORKS[row].slow)
        own_stride = self.budget.stride == PAPER_STRIDE
        return {
            "train.epochs": epochs,
            "train.precision": self.precision,
            "train.validate_every": max(1, round(epochs / VALIDATIONS)),
            "train.seed": seed,
            "stitch.stride": config.stitch.stride if own_stride else self.budget.stride,
            "loss.vgg_weights": self.vgg_weights,
        }

    def steps(self, row: str, patches: int) -> int:
        """Optimiser steps of a row that is trained on so many patches."""
        train = self.config(row).train
        return train.epochs * (patches // train.batch_size)

    def trained(self, row: str) -> str:
        """What the budget leaves of a network's training, in words."""
        network = NETWORKS[row]
        return self.budget.in_words(network.config.train.epochs, network.slow)

    def config(self, row: str, seed: int = 0) -> RunConfig:
        """The run of a row."""
        return with_overrides(NETWORKS[row].config, self.changes(row, seed))

    def forest_config(self, row: str, jobs: int = 0) -> ForestConfig:
        """How a forest is fitted; boosted trees see all their rows in each round."""
        budget = self.budget
        config = replace(FOREST_CONFIGS[row], trees=budget.trees, jobs=jobs)
        return config if row == BOOSTED else replace(config, max_samples=budget.tree_rows)

    def missing(self, row: str) -> str | None:
        """Why a row cannot be run here; None if it can."""
        if row in NETWORKS and NETWORKS[row].config.loss.needs_vgg16:
            found = weights_path(self.vgg_weights).is_file()
            return None if found else "VGG16's ImageNet weights are not there; see --vgg-weights"
        return None

    def to_json(self) -> str:
        """Indented JSON."""
        return _TASK.dump_json(self, indent=1).decode() + "\n"


_TASK = TypeAdapter(Task)


def task_from_json(text: str | bytes, where: str) -> Task:
    """Inverse of Task.to_json.

    Raises:
        ConfigError: If it is no task that can be read; names the file and the field.
    """
    try:
        return _TASK.validate_json(text)
    except ValidationError as error:
        rule = f"is not a reproduction that can be read ({first_complaint(error)})"
        raise ConfigError(f"{where} {rule}") from None


def read_task(folder: Folder) -> Task:
    """What was asked for.

    Raises:
        DataError: If there is no reproduction here.
        ConfigError: If its task cannot be read.
    """
    if not folder.exists(TASK_FILE):
        raise DataError(folder.url, f"no reproduction here (no {TASK_FILE})", "Check the path")
    return task_from_json(folder.read(TASK_FILE), folder / TASK_FILE)


def check_same_task(before: Task, now: Task) -> None:
    """Refuse to resume another task; other rows and more seeds may be asked for.

    Raises:
        ConfigError: Shows every difference, before and now.
    """
    if lines := list(_differences(before, now)):
        raise ConfigError(
            "this reproduction was started with other settings and can only be resumed with "
            "these unchanged:\n  " + "\n  ".join(lines) + "\nStart another one with another --out"
        )


def _differences(before: Task, now: Task) -> Iterator[str]:
    for item in fields(Task):
        old, new = (
            json.dumps(_TASK.dump_python(task, mode="json")[item.name]) for task in (before, now)
        )
        if old != new and item.name not in ("rows", "seeds", "vgg_weights"):
            yield f"{item.name}: {old} before, {new} now"

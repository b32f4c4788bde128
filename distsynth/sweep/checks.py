"""Checks of a sweep before anything starts: what would make every trial fail is found once."""

from __future__ import annotations

from pathlib import Path

import ray

from distsynth.config import RunConfig
from distsynth.data.resolve import resolved
from distsynth.errors import ConfigError
from distsynth.losses.perceptual import check_weights
from distsynth.sweep.hyperparameters import configure, draw_candidates, manifest_of
from distsynth.sweep.plan import SweepConfig, SweepPlan
from distsynth.training.setup import check_setup, check_windows
from sharding.io.errors import DataError
from sharding.io.storage import Folder
from sharding.volumes.cohort import read_cohort
from tune_spaces.plain import space_from_plain

CANDIDATES = 16
"""Sets of hyperparameters that are checked; if none can be trained, the plan is refused."""


def check_plan(plan: SweepPlan) -> None:
    """Refuse a plan of which no trial could be trained, or whose cohort cannot be read.

    Raises:
        ConfigError: If nothing in the space suits the shards and the resources; says why.
        DataError: If a shard or the cohort is missing.
    """
    sweep = plan.sweep
    if sweep.cohort is not None:
        read_cohort(Path(sweep.cohort))
    space = space_from_plain(plan.space)
    shards = space["data.shards"].categories if "data.shards" in space else [plan.base.data.shards]
    for folder in shards:
        check_shards_exist(str(folder))
    if not space:
        return
    population = sweep.scheduler == "pbt"
    candidates, _ = draw_candidates(space, plan.base, CANDIDATES, sweep.seed, population)
    reasons = []
    for hyperparameters in candidates:
        config = configure(plan.base, hyperparameters, population)
        if (reason := why_not(config, sweep)) is None:
            return
        reasons.append(reason)
    raise ConfigError(f"no hyperparameters of the space can be trained: {reasons[0]}")


def check_resources(plan: SweepPlan) -> None:
    """Refuse trials that the cluster of this machine can never run; it does not grow.

    Raises:
        ConfigError: Names what it lacks.
    """
    sweep = plan.sweep
    there = ray.cluster_resources()
    for name, each in (("CPU", float(sweep.cpus)), ("GPU", sweep.gpus)):
        needed, found = each * sweep.workers, there.get(name, 0.0)
        if needed > found:
            raise ConfigError(
                f"sweep.{name.lower()}s must fit this machine: a trial with "
                f"sweep.workers={sweep.workers} needs {needed:g} {name}, it has {found:g}; ask for "
                "less, or give --address of a larger cluster"
            )


def why_not(config: RunConfig, sweep: SweepConfig) -> str | None:
    """Why a configuration cannot be trained; None if it can, as far as this can be told."""
    try:
        manifest = manifest_of(config.data.shards)
        check_setup(resolved(config, manifest), manifest, sweep.workers, bool(sweep.gpus))
        check_windows(sweep.objective, manifest)
        if config.loss.needs_vgg16:
            check_weights(config.loss.vgg_weights)
    except (ConfigError, DataError) as error:
        return str(error)
    return None


def check_shards_exist(shards: str) -> None:
    """Raise DataError unless every shard of the manifest is there."""
    folder = Folder(shards)
    present = set(folder.names())
    missing = [row.name for row in manifest_of(shards).shards if row.name not in present]
    if missing:
        raise DataError(
            folder.url,
            f"{len(missing)} of its shards are missing, the first is {missing[0]}",
            "Copy the folder again or shard the cohort again",
        )

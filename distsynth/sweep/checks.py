"""Checks of a sweep before anything starts: what would make every trial fail is found once."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from distsynth.config import RunConfig
from distsynth.data.resolve import resolved
from distsynth.errors import ConfigError
from distsynth.losses.perceptual import check_weights
from distsynth.metrics.steps import LEAST_STEPS, is_untrained
from distsynth.sweep.hyperparameters import configure, draw_candidates, manifest_of
from distsynth.sweep.plan import SweepConfig, SweepPlan
from distsynth.training.setup import check_setup, check_windows
from sharding.io.errors import DataError
from sharding.io.storage import Folder
from sharding.volumes.cohort import read_cohort
from tune_spaces.plain import space_from_plain

logger = logging.getLogger(__name__)

MADE_UP = "node_"
"""How the types of nodes begin that no autoscaler manages."""
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


def check_resources(plan: SweepPlan, local: bool) -> None:
    """Refuse trials that the cluster can never run; say what is waited for if it may grow.

    Args:
        plan: What is asked.
        local: Whether the cluster was started on this machine for the sweep.

    Raises:
        ConfigError: Names what a cluster lacks that does not grow.
    """
    sweep = plan.sweep
    each = {"CPU": float(sweep.cpus), "GPU": sweep.gpus}
    there = ray.cluster_resources()
    lacks = next((name for name in each if each[name] * sweep.workers > there.get(name, 0)), None)
    if lacks is None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if sum(_room(node, each) for node in nodes) >= sweep.workers:
            return
    needed = {name: count * sweep.workers for name, count in each.items() if count}
    wanted = ", ".join(f"{count:g} {name}" for name, count in needed.items())
    found = ", ".join(f"{there.get(name, 0):g} {name}" for name in needed)
    if _may_grow():
        logger.info(
            f"a trial needs {wanted}, the cluster has {found} now: trials wait until it has grown"
        )
        return
    place = "this machine" if local else "a cluster that does not grow"
    field = f"sweep.{(lacks or 'CPU').lower()}s"
    detail = "" if lacks else ", spread over nodes that each have too few for one worker"
    remedy = "give --address of a larger cluster" if local else "add nodes to the cluster first"
    raise ConfigError(
        f"{field} must fit {place}: a trial with sweep.workers={sweep.workers} needs {wanted}, it "
        f"has {found}{detail}; ask for less, or {remedy}"
    )


def slots(sweep: SweepConfig) -> int:
    """Trials that run at a time on the cluster as it is, if nobody else uses it."""
    each = {"CPU": float(sweep.cpus), "GPU": sweep.gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found = sum(_room(node, each) for node in nodes) // sweep.workers
    return min(found, sweep.concurrent) if sweep.concurrent else found


def warn_of_short_trials(plan: SweepPlan) -> None:
    """Say what the scores of trials can tell that take few optimiser steps."""
    base = plan.base
    searched = plan.space.get("data.shards", {}).get("choice", [base.data.shards])
    manifest = manifest_of(str(searched[0]))
    steps = base.train.epochs * (manifest.patches("train") // base.train.batch_size)
    if base.train.minutes or not is_untrained(steps):
        return
    enough = math.ceil(base.train.epochs * LEAST_STEPS / max(steps, 1))
    logger.warning(
        f"a trial takes {steps:,} optimiser steps in {base.train.epochs} epochs: after fewer than "
        f"{LEAST_STEPS:,} the scores show which trials start well, so that high learning rates and "
        "small networks look better than they are; they do not show which networks or losses end "
        f"well. --train.epochs {enough} takes {LEAST_STEPS:,} steps"
    )


def _room(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many workers a node has room for, when it is empty."""
    return int(min(node.get(name, 0) // count for name, count in each.items() if count))


def _may_grow() -> bool:
    """Whether an autoscaler may add nodes to the cluster.

    Ray has no public name for this. Its first autoscaler reports the types of nodes, which for a
    cluster that was put together by hand are made up, one a node; its second reports elsewhere.
    """
    if is_autoscaler_v2():
        return True
    report = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    if report is None:
        return False
    try:
        kinds = json.loads(report)["autoscaler_report"]["active_nodes"]
    except (ValueError, KeyError):
        return False
    return not all(kind.startswith(MADE_UP) for kind in kinds)


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
